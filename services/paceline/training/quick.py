"""A drafter from nothing: prompts of our own, the target's answers to them with its hidden states, a short training.

Each part is left in the run's folder and goes on where it was when the same command is started again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline.speculation.errors import PacelineError, Unavailable
from paceline.training.prompts import DOMAINS
from paceline.training.prompts.__main__ import write

_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Quick:
    """How much of everything. On two cores: a third of the time each for answers and states, the rest for training."""

    prompts: int = 240  # of each domain
    max_tokens: int = 112  # of an answer
    minutes: float = 13.0  # of training


class Interrupted(PacelineError):
    """A part was stopped by Ctrl-C; it goes on from there."""


def child(command: Sequence[str]) -> int:
    """Run a command that shows its own progress; its exit code."""
    try:
        return subprocess.run(command, check=False).returncode  # noqa: S603  # ours
    except KeyboardInterrupt:  # the child got it as well, and was waited for
        return _INTERRUPTED


def prepare(
    out: Path,
    model: str,
    threads: int | None,
    say: Callable[[str], None],
    *,
    how: Quick,
    run: Callable[[Sequence[str]], int] = child,
) -> Path:
    """The target cache of a quick run, captured as far as it is not there yet.

    Raises Unavailable if the capture fails, Interrupted if it was.
    """
    folder = out / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [write(folder, domain, how.prompts, 0) for domain in DOMAINS]
    say(f"capturing the target's answers to {how.prompts * len(paths)} prompts, and its hidden states")
    cache = out / "cache"
    command = [sys.executable, "-m", "paceline.training.capture", "--model", model, "--out", str(cache)]
    command += ["--prompts", *map(str, paths), "--max-tokens", str(how.max_tokens), "--temperature", "0"]
    if threads is not None:
        command += ["--threads", str(threads)]
    code = run(command)
    if code == _INTERRUPTED:
        raise Interrupted("stopped; the same command goes on")
    if code:
        raise Unavailable(f"the capture failed with exit code {code}")
    return cache
