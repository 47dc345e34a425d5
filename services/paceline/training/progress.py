"""What a training run shows: loss, acceptance by position, speed and time left."""

from __future__ import annotations

import time

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from paceline.training.bar import LINE_EVERY_S, NEWS, Bar
from paceline.training.trainer import Report

_SMOOTH = 0.97


class Display:
    """Shows the steps of a run.

    Args:
        quiet: show nothing (every process of a run but the first).
    """

    def __init__(self, *, quiet: bool = False, line_every_s: float = LINE_EVERY_S) -> None:
        columns = (BarColumn(30), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn(), NEWS)
        self._bar = Bar(*columns, total=1.0, quiet=quiet, line_every_s=line_every_s)
        self._loss = 0.0
        self._hits: list[float] = []
        self._rows = 0
        self._first = time.monotonic()

    def say(self, line: str) -> None:
        """One line."""
        self._bar.say(line)

    def step(self, report: Report) -> None:
        """A step was done."""
        if not self._hits:
            self._loss, self._hits = report.loss, list(report.hits)
            self._first = time.monotonic()
            self._bar.start()
        else:
            self._loss = _SMOOTH * self._loss + (1 - _SMOOTH) * report.loss
            pairs = zip(self._hits, report.hits, strict=True)
            self._hits = [_SMOOTH * old + (1 - _SMOOTH) * new for old, new in pairs]
            self._rows += report.rows
        text = self._text(report)
        self._bar.show(report.progress, text, lambda: f"{report.progress:6.1%} {text}")

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def _text(self, report: Report) -> str:
        speed = self._rows / max(time.monotonic() - self._first, 1e-9)
        share = " ".join(f"{each:.2f}" for each in self._hits)
        left = time.strftime("%H:%M:%S", time.gmtime(min(report.seconds_left, 86399)))
        return f"step {report.step}  loss {self._loss:.3f}  accepts {share}  {speed:,.0f} tokens/s  {left} left"
