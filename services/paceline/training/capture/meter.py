"""Counting what a capture has done."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from paceline.training.bar import LINE_EVERY_S, NEWS, Bar


class Meter:
    """Counts things done out of ``total``, and tokens beside them."""

    def __init__(self, label: str, total: int, *, done: int = 0, line_every_s: float = LINE_EVERY_S) -> None:
        self._label, self._total, self._done, self._before = label, total, done, done
        self._tokens = 0
        self._began = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), NEWS, TimeRemainingColumn())
        self._bar = Bar(*columns, total=total, done=done, label=label, line_every_s=line_every_s)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
        self._bar.say(self._line())

    def add(self, *, done: int = 0, tokens: int = 0) -> None:
        """So much more is done."""
        self._done += done
        self._tokens += tokens
        self._bar.show(self._done, f"{self._pace():,.0f} tokens/s", self._line)

    def _pace(self) -> float:
        return self._tokens / max(1e-9, time.monotonic() - self._began)

    def _line(self) -> str:
        spent, fresh = time.monotonic() - self._began, self._done - self._before
        left = f", {spent / fresh * (self._total - self._done) / 60:.1f} min left" if fresh else ""
        told = f"{self._label}: {self._done} of {self._total}, {self._tokens:,} tokens at {self._pace():,.0f} a second"
        return told + (left if self._done < self._total else "")
