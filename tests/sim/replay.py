"""Runs one seed of the simulation and prints its transcript: ``python -m tests.sim.replay SEED``."""

from __future__ import annotations

import sys

from tests.sim.cluster import Cluster
from tests.sim.properties import check
from tests.sim.scenario import scenario_of


def main(seed: int) -> None:
    """Print everything that happened, then what is wrong with it, if anything is."""
    cluster = Cluster(seed, scenario_of(seed))
    try:
        check(cluster, cluster.run())
    finally:
        sys.stdout.write("\n".join(cluster.world.transcript) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
