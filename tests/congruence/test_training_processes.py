"""Two processes that share a run's steps learn what one alone learns."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.training_kit import recipe_for, write_cache


def _run(arguments: list[str], home: Path, world: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        environment = os.environ | {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "PACELINE_HOME": str(home),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "paceline.training", *arguments]
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for child in children:
        _, said = child.communicate(timeout=240)
        assert child.returncode == 0, said


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    recipe_for(tmp_path)
    cache = write_cache(tmp_path / "cache")
    options = ["--cache", str(cache), "--model", str(tmp_path / "target"), "--steps", "6", "--samples", "4"]
    options += ["--block-size", "3", "--draft-vocab", "24", "--mask-token-id", "63", "--anchors", "8"]
    found = {}
    for world in (1, 2):
        out = tmp_path / f"run{world}"
        _run([*options, "--out", str(out)], tmp_path / "home", world)
        found[world] = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(found[1]) == len(found[2]) == 6
    for one, two in zip(found[1], found[2], strict=True):
        assert one["rows"] == two["rows"]
        assert one["loss"] == pytest.approx(two["loss"], rel=2e-2)  # sums in another order, in bfloat16
