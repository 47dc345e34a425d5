"""A drafter from nothing: ``paceline train --quick``, and how far the drafts of what it made get.

The run is timed whole, from before its first prompt is written to its end. Then the drafter alone, of no other's help,
drafts for a cluster: its accepted length τ, greedy, by set of prompts. A finished run in ``--out`` is not made again;
its time is then not told.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from paceline.cli.asking import Ask, answer, read_prompts
from paceline.runtime.cluster import LocalCluster
from paceline.runtime.cluster_spec import ClusterSpec
from paceline.speculation.figures import Figures, RoundSeen
from paceline_client import AsyncClient, Speculation

from bench.arguments import DRAFTS_COME, PROMPTS, parser
from bench.progress import progress
from bench.speedup import bar, shipped_of

MINUTES_BAR, TAU_BAR = 25.0, 1.5
MOST_DRAFTED = 7


def train(out: Path, arguments: Namespace) -> bool:
    """Make the drafter; whether that was quick enough. Raises CalledProcessError if it failed."""
    command = [sys.executable, "-m", "paceline.training", "--quick", "--model", arguments.model, "--out", str(out)]
    began = time.monotonic()
    subprocess.run([*command, "--threads", str(arguments.threads)], check=True)
    minutes = (time.monotonic() - began) / 60
    met = minutes < MINUTES_BAR
    print(f"bar: a drafter from nothing in under {MINUTES_BAR:g} minutes: {minutes:.1f} {'met' if met else 'MISSED'}")
    return met


async def measure(drafter: Path, arguments: Namespace) -> bool:
    """Print τ by set; whether each is long enough."""
    spec = ClusterSpec(
        model=arguments.model, drafter_checkpoint=drafter, threads=arguments.threads, settings=(DRAFTS_COME,)
    )
    met = True
    async with LocalCluster(spec) as cluster, AsyncClient(cluster.grpc_address) as client:
        (model,) = await client.models()
        name = shipped_of(model.drafters)
        speculation = Speculation(mode="fixed", max_draft_tokens=MOST_DRAFTED, drafter=name)
        for domain, prompts in read_prompts(arguments.prompts, arguments.limit).items():
            figures = await _figures(client, domain, prompts, speculation)
            met &= bar(f"τ of {name} alone, greedy, {domain}, {len(prompts)} prompts", figures.tau or 0.0, TAU_BAR)
    return met


async def _figures(
    client: AsyncClient, domain: str, prompts: list[tuple[str, ...]], speculation: Speculation
) -> Figures:
    rounds: list[RoundSeen] = []
    with progress(domain, len(prompts)) as done:
        for turns in prompts:
            rounds += (await answer(client, turns, speculation, Ask(max_tokens=128))).rounds
            done()
    return Figures(rounds)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--prompts", type=Path, default=PROMPTS, metavar="FOLDER", help="default: bench/prompts")
    options.add_argument("--limit", type=int, default=12, help="prompts of each set (default: 12)")
    options.add_argument("--out", type=Path, metavar="FOLDER", help="of the run (default: none is kept)")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or Path(scratch)
        drafter = out / "drafter"
        met = drafter.exists() or train(out, arguments)
        met &= asyncio.run(measure(drafter, arguments))
    return 0 if met or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
