"""What a short training brings, and that a killed one loses nothing.

Two runs of one recipe over a target cache: one left alone, the other killed (SIGKILL) half-way and resumed. Printed:
accepted length on held-out samples before and after, and whether the losses of both are the same, step by step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from paceline.training import setup
from paceline.training.recipe import Recipe
from paceline.training.replay import Replayed
from paceline.training.state import LOG, STATE
from paceline.training.trainer import Trainer
from paceline.training.workers import Workers

_POLL_S = 0.2


def main() -> int:
    """Returns 0 if the losses are the same and τ rose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, action="append", required=True)
    parser.add_argument("--steps", type=int, default=1200, help="about five minutes on two cores")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draft-vocab", type=int, default=8192)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Recipe(steps=options.steps, draft_vocab=options.draft_vocab)
        before = _trainer(Path(scratch) / "start", recipe, options.cache).measure()
        whole, killed = Path(scratch) / "whole", Path(scratch) / "killed"
        command = _command(options)
        began = time.monotonic()
        subprocess.run([*command, "--out", str(whole)], check=True)
        took = time.monotonic() - began
        lost = _killed([*command, "--out", str(killed)], killed, options.steps // 2)
        subprocess.run([*command, "--out", str(killed), "--resume"], check=True)
        after = _resumed(killed, options.cache).measure()
        same = _report(whole, killed, lost)
        print(f"{options.steps} steps took {took:.0f} s")
        print(f"tau on held-out samples: {_line(before)} before, {_line(after)} after: {after.tau - before.tau:+.2f}")
    return 0 if same and after.tau > before.tau else 1


def _command(options: argparse.Namespace) -> list[str]:
    caches = [word for cache in options.cache for word in ("--cache", str(cache))]
    numbers = ["--steps", str(options.steps), "--threads", str(options.threads), "--save-seconds", "5"]
    return [sys.executable, "-m", "paceline.training", *caches, *numbers, "--draft-vocab", str(options.draft_vocab)]


def _surroundings(out: Path, caches: list[Path]) -> setup.Surroundings:
    return setup.Surroundings(out, caches, torch.device("cpu"), Workers(), lambda line: None)


def _trainer(out: Path, recipe: Recipe, caches: list[Path]) -> Trainer:
    return setup.begin(recipe, _surroundings(out, caches))


def _resumed(out: Path, caches: list[Path]) -> Trainer:
    return setup.resumed(_surroundings(out, caches))


def _killed(command: list[str], out: Path, step: int) -> int:
    """Kill a run once it has logged ``step`` steps and saved a state on the way; how many steps were logged."""
    with subprocess.Popen(command) as child:
        while child.poll() is None and (len(_losses(out)) < step or not (out / STATE).exists()):
            time.sleep(_POLL_S)
        os.kill(child.pid, signal.SIGKILL)
    return len(_losses(out))


def _losses(out: Path) -> list[float]:
    path = out / LOG
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["loss"] for line in lines if line.endswith("}")]


def _report(whole: Path, killed: Path, logged: int) -> bool:
    one, other = _losses(whole), _losses(killed)
    differing = sum(a != b for a, b in zip(one, other, strict=True))
    print(f"killed after {logged} steps and resumed: {differing} of {len(one)} losses differ from the run left alone")
    return not differing


def _line(found: Replayed) -> str:
    return f"{found.tau:.2f} ({sum(found.rounds)} rounds)"


if __name__ == "__main__":
    raise SystemExit(main())
