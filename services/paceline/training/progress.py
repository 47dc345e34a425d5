"""What a training run shows: a bar with loss, acceptance by position, speed and time left; plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from paceline.training.trainer import Report

_LINE_EVERY_S = 30.0
_SMOOTH = 0.97


class Display:
    """Shows the steps of a run.

    Args:
        quiet: show nothing (every process of a run but the first).
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(file=sys.stderr)
        columns = (
            BarColumn(30),
            TextColumn("{task.percentage:.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns, console=self._console) if self._console.is_terminal and not quiet else None
        self._task = self._bar.add_task("", total=1.0) if self._bar else None
        self._loss = 0.0
        self._hits: list[float] = []
        self._rows = 0
        self._shown = self._first = time.monotonic()

    def say(self, line: str) -> None:
        """One line."""
        if not self._quiet:
            self._console.print(line, highlight=False, soft_wrap=True)

    def step(self, report: Report) -> None:
        """A step was done."""
        if not self._hits:
            self._loss, self._hits = report.loss, list(report.hits)
            self._first = time.monotonic()
            if self._bar:
                self._bar.start()
        else:
            self._loss = _SMOOTH * self._loss + (1 - _SMOOTH) * report.loss
            pairs = zip(self._hits, report.hits, strict=True)
            self._hits = [_SMOOTH * old + (1 - _SMOOTH) * new for old, new in pairs]
            self._rows += report.rows
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=report.progress, description=self._text(report))
        elif not self._quiet and time.monotonic() - self._shown > _LINE_EVERY_S:
            self._shown = time.monotonic()
            self.say(f"{report.progress:6.1%} {self._text(report)}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _text(self, report: Report) -> str:
        speed = self._rows / max(time.monotonic() - self._first, 1e-9)
        share = " ".join(f"{each:.2f}" for each in self._hits)
        left = time.strftime("%H:%M:%S", time.gmtime(min(report.seconds_left, 86399)))
        return f"step {report.step}  loss {self._loss:.3f}  accepts {share}  {speed:,.0f} tokens/s  {left} left"
