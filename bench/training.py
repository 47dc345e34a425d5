"""Does a short training pay, does a killed one lose anything, and what does a bad byte cost?

From a fresh target cache (captured in a scratch folder, unless ``--cache`` names some) two runs of one recipe: one left
alone, the other killed (SIGKILL) half-way and resumed. A run is so many steps, since only such a run is the same twice;
how many make ``--minutes`` is measured in a short start. Printed: accepted length on held-out samples before and after,
sample by sample, and whether all losses of both runs are the same. Then one byte of a copy of the cache is flipped:
``paceline cache verify`` has to name that sample and no other, and reading and training go on without it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from paceline.cache.target import TargetCache
from paceline.speculation.errors import InvalidRequest
from paceline.training import setup
from paceline.training.quick import Quick, prepare
from paceline.training.recipe import Recipe
from paceline.training.replay import Replayed
from paceline.training.state import LOG, load
from paceline.training.trainer import Trainer
from paceline.training.workers import Workers

from bench import stats
from bench.arguments import parser
from bench.flipped import flip, goes_on, named_samples

_POLL_S = 0.2
_PACE_STEPS, _PACE_SKIPPED, _PACE_S = 60, 5, 30.0  # of the short start: so many steps, or so many seconds
_PACE_MOST = 10_000  # it is killed long before
_SAVES = 10  # states a run writes before it is killed, about
_SAVE_S = 10.0  # between two of them, at most


def say(line: str) -> None:
    print(line, flush=True)


def fresh_cache(arguments: Namespace, scratch: Path) -> Path:
    """A small cache of the target's greedy answers to prompts of our own."""
    began = time.monotonic()
    how = Quick(prompts=arguments.prompts, max_tokens=arguments.tokens)
    cache = prepare(scratch, arguments.model, arguments.threads, say, how=how)
    found = TargetCache.open(cache)
    tokens = int(found.lengths.sum())
    say(f"captured {len(found)} samples of {tokens:,} tokens from nothing in {time.monotonic() - began:.0f} s")
    return cache


@dataclass(frozen=True, slots=True)
class Runs:
    """Where runs are, and what they have in common."""

    scratch: Path
    caches: list[Path]
    recipe: Recipe  # but for its length
    threads: int

    def begin(self, name: str) -> Trainer:
        """The run's start, in this process. Raises InvalidRequest if too few samples are held out to say anything."""
        out = setup.begin(self.recipe, self._at(name))
        if len(out.samples.held_out) < stats.MIN_REPEATS:
            expected = f"a cache of which {stats.MIN_REPEATS} samples are held out"
            raise InvalidRequest("prompts", expected=expected, got=len(out.samples.held_out))
        return out

    def resumed(self, name: str) -> Trainer:
        return setup.resumed(self._at(name))

    def folder(self, name: str) -> Path:
        return self.scratch / name

    def command(self, name: str, steps: int, save_s: float) -> list[str]:
        """A run in a process of its own."""
        caches = [word for cache in self.caches for word in ("--cache", str(cache))]
        recipe = ["--model", self.recipe.model, "--draft-vocab", str(self.recipe.draft_vocab), "--steps", str(steps)]
        how = ["--threads", str(self.threads), "--save-seconds", f"{save_s:g}", "--out", str(self.folder(name))]
        return [sys.executable, "-m", "paceline.training", *caches, *recipe, *how]

    def losses(self, name: str) -> list[float]:
        """Of every step logged so far."""
        path = self.folder(name) / LOG
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["loss"] for line in lines if line.endswith("}")]

    def _at(self, name: str) -> setup.Surroundings:
        return setup.Surroundings(self.folder(name), self.caches, torch.device("cpu"), Workers(), say)


def pace(runs: Runs) -> float:
    """Seconds of a step, in a short start of a run; the first steps warm up."""
    counted: list[tuple[int, float]] = []  # steps, and when they were done
    with subprocess.Popen(runs.command("short", _PACE_MOST, _SAVE_S)) as child:
        try:
            while child.poll() is None and not _paced(counted):
                steps = len(runs.losses("short"))
                if steps >= _PACE_SKIPPED and (not counted or steps > counted[-1][0]):
                    counted.append((steps, time.monotonic()))
                time.sleep(_POLL_S)
        finally:
            child.kill()
    if not _paced(counted):
        raise RuntimeError(f"the short start ended with exit code {child.returncode}")
    (before, began), (after, ended) = counted[0], counted[-1]
    return (ended - began) / (after - before)


def _paced(counted: list[tuple[int, float]]) -> bool:
    """Whether enough steps, or long enough ones, were counted."""
    return len(counted) > 1 and (counted[-1][0] >= _PACE_STEPS or counted[-1][1] - counted[0][1] > _PACE_S)


@dataclass(frozen=True, slots=True)
class Kill:
    """How far a run was when it was killed."""

    logged: int  # steps
    saved: int  # steps in the state it left


def killed(runs: Runs, name: str, command: list[str], step: int) -> Kill:
    """Kill a run once it has logged ``step`` steps. Raises RuntimeError if it ends before."""
    with subprocess.Popen(command) as child:
        try:
            while child.poll() is None and len(runs.losses(name)) < step:
                time.sleep(_POLL_S)
            if child.poll() is not None:
                raise RuntimeError(f"the run ended with exit code {child.returncode} before step {step}")
        finally:
            child.kill()
    return Kill(len(runs.losses(name)), load(runs.folder(name)).step)


def same_curve(runs: Runs, steps: int, kill: Kill) -> bool:
    """Whether both runs had the same losses, all of them."""
    one, other = runs.losses("whole"), runs.losses("killed")
    differing = sum(a != b for a, b in zip(one, other, strict=False))
    say(f"killed after step {kill.logged}, resumed after step {kill.saved}: {len(other)} steps logged in the end")
    met = len(one) == len(other) == steps and not differing and 0 < kill.saved <= kill.logged < steps
    after = steps - kill.saved
    return bar(f"losses that differ from the run left alone, {steps} steps, {after} of them resumed", differing, met)


def improved(before: Replayed, after: Replayed) -> bool:
    """Whether held-out samples are drafted better than before."""
    pairs = [
        (after.committed[at] / after.rounds[at], before.committed[at] / before.rounds[at])
        for at in range(len(before.rounds))
        if after.rounds[at] and before.rounds[at]
    ]
    margin = after.tau - before.tau
    say(f"tau on {len(pairs)} held-out samples, greedy: {_tau(before)} before, {_tau(after)} after: {margin:+.2f}")
    gain = stats.ratio([new for new, _ in pairs], [old for _, old in pairs])
    return bar("tau after over before, by sample, above 1", gain, gain.low > 1)


def _tau(found: Replayed) -> str:
    return f"{found.tau:.2f} ({sum(found.rounds)} rounds)"


def bar(name: str, value: object, met: bool) -> bool:
    say(f"bar: {name}: {value} {'met' if met else 'MISSED'}")
    return met


def one_bad_byte(runs: Runs) -> bool:
    """Plant it in a copy of the first cache; see who is named, and what goes on."""
    planted = flip(runs.caches[0], runs.folder("flipped"), runs.recipe.seed)
    say(f"flipped byte {planted.offset:,} of {planted.shard}, in sample {planted.sample_id} of {planted.samples}")
    named = named_samples(planted.folder)
    met = bar("samples that `paceline cache verify` names", named, named == [planted.sample_id])
    others = replace(runs, caches=[planted.folder])
    subprocess.run(others.command("others", planted.steps, _SAVE_S), check=True)
    read, trained = goes_on(planted), len(others.losses("others"))
    told = f"{read} of {planted.samples} samples read, {trained} of {planted.steps} steps trained"
    return bar("without it", told, read == planted.samples - 1 and trained == planted.steps) and met


def measure(arguments: Namespace, scratch: Path) -> bool:
    """Everything. Returns whether the bars are met."""
    caches = arguments.cache or [fresh_cache(arguments, scratch)]
    recipe = Recipe(model=arguments.model, steps=_PACE_MOST, draft_vocab=arguments.draft_vocab)
    runs = Runs(scratch, caches, recipe, arguments.threads)
    before = runs.begin("start").measure()
    step_s = pace(runs)
    steps = arguments.steps or max(2 * _PACE_STEPS, round(60 * arguments.minutes / step_s))
    say(f"a step takes {step_s:.3f} s: {steps} steps are about {steps * step_s / 60:.1f} minutes")
    save_s = min(_SAVE_S, steps * step_s / 2 / _SAVES)
    began = time.monotonic()
    subprocess.run(runs.command("whole", steps, save_s), check=True)
    say(f"the run left alone took {(time.monotonic() - began) / 60:.1f} minutes, start and last measure included")
    again = runs.command("killed", steps, save_s)
    kill = killed(runs, "killed", again, steps // 2)
    subprocess.run([*again, "--resume"], check=True)
    met = same_curve(runs, steps, kill)
    met &= improved(before, runs.resumed("killed").measure())
    return one_bad_byte(runs) and met


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--cache", type=Path, action="append", default=[], help="a cache to train on, instead of one")
    options.add_argument("--prompts", type=int, default=150, help="of each domain, for a fresh cache (default: 150)")
    options.add_argument("--tokens", type=int, default=72, help="of an answer in it (default: 72)")
    options.add_argument("--minutes", type=float, default=5.0, help="of training, about (default: 5)")
    options.add_argument("--steps", type=int, help="of training, instead")
    options.add_argument("--draft-vocab", type=int, default=8192, help="tokens the drafter knows (default: 8192)")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="paceline-training-") as scratch:
        met = measure(arguments, Path(scratch))
    return 0 if met or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
