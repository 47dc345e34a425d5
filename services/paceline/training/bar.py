"""Progress of long work on standard error: a bar for those who watch, a line now and then for a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TextColumn

LINE_EVERY_S = 30.0
NEWS = TextColumn("{task.fields[news]}")
"""The column of what ``Bar.show`` is told."""


class Bar:
    """A bar where standard error is a terminal; elsewhere a line every ``line_every_s`` seconds.

    Args:
        columns: of the bar, from left to right.
        total: when it is full.
        done: where it begins.
        label: the task's description.
        quiet: show nothing.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *columns: ProgressColumn,
        total: float,
        done: float = 0,
        label: str = "",
        quiet: bool = False,
        line_every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._clock = Console(stderr=True, quiet=quiet), clock
        self._watched = self._console.is_terminal and not quiet
        self._bar = Progress(*columns, console=self._console, disable=not self._watched, speed_estimate_period=120)
        self._task = self._bar.add_task(label, total=total, news="")
        self._bar.update(self._task, completed=done)
        self._line_every_s, self._said = line_every_s, clock()

    def start(self) -> None:
        """Show it from now on."""
        self._bar.start()

    def stop(self) -> None:
        """Take it away."""
        self._bar.stop()

    def show(self, done: float, news: str, line: Callable[[], str]) -> None:
        """So much is done.

        Args:
            news: what stands beside the bar.
            line: what a log gets instead, if it is time for a line.
        """
        if self._watched:
            self._bar.update(self._task, completed=done, news=news)
        elif self._clock() - self._said > self._line_every_s:
            self._said = self._clock()
            self.say(line())

    def say(self, line: str) -> None:
        """One line, above the bar."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False, emoji=False)
