"""Progress of long work on standard error: a bar for those who watch, a line now and then for a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 30.0


class Meter:
    """Counts things done out of ``total``, and tokens beside them."""

    def __init__(self, label: str, total: int, *, done: int = 0) -> None:
        self._label, self._total, self._done, self._before = label, total, done, done
        self._tokens = 0
        self._began = self._said = time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal, speed_estimate_period=120,
        )  # fmt: skip
        self._task = self._bar.add_task(label, total=total, completed=done, pace="")
        self._watched = console.is_terminal

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
        self._say()

    @property
    def tokens(self) -> int:
        return self._tokens

    def add(self, *, done: int = 0, tokens: int = 0) -> None:
        """So much more is done."""
        self._done += done
        self._tokens += tokens
        self._bar.update(self._task, advance=done, pace=f"{self._pace():,.0f} tokens/s")
        if not self._watched and time.monotonic() - self._said > LINE_EVERY_S:
            self._said = time.monotonic()
            self._say()

    def _pace(self) -> float:
        return self._tokens / max(1e-9, time.monotonic() - self._began)

    def _say(self) -> None:
        spent, fresh = time.monotonic() - self._began, self._done - self._before
        left = f", {spent / fresh * (self._total - self._done) / 60:.1f} min left" if fresh else ""
        told = f"{self._label}: {self._done} of {self._total}, {self._tokens:,} tokens at {self._pace():,.0f} a second"
        sys.stderr.write(f"{told}{left if self._done < self._total else ''}\n")
        sys.stderr.flush()
