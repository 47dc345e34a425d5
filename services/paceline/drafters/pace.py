"""How many rows a drafting step may have, from the engine's measured step times and the time that is left."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

LEARNING_RATE = 0.3  # weight of the newest step in what steps cost
LEAST_LEVEL = 1e-3
OPTIMISM = 0.8  # what a step is believed to cost, per batch refused, relative to before


class Pace:
    """Fits steps into a time budget. No clock: times come in as arguments.

    The curve is measured at start-up, when the machine may be busier or idler than later, so its level follows the
    steps that are run. Refusing teaches nothing, so each refusal lowers the level: a drafter that was once slow is
    tried again within a bounded number of batches.

    Args:
        curve: measured (rows, seconds), ascending rows; empty means that steps are taken to cost nothing.
        step_tokens: rows of one step at most.
    """

    def __init__(self, curve: Sequence[tuple[int, float]], step_tokens: int) -> None:
        assert step_tokens > 0, step_tokens
        self._seconds = [_seconds(curve, rows) for rows in range(1, step_tokens + 1)]
        for i in range(1, step_tokens):  # measured curves jitter; more rows never count as cheaper
            self._seconds[i] = max(self._seconds[i], self._seconds[i - 1])
        self._level = 1.0  # what steps cost now, relative to the curve

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        expected = self._seconds[min(rows, len(self._seconds)) - 1]
        if expected > 0:
            self._level += LEARNING_RATE * (max(LEAST_LEVEL, seconds / expected) - self._level)

    def refuse(self) -> None:
        """A batch was answered without a step, for lack of time."""
        self._level = max(LEAST_LEVEL, self._level * OPTIMISM)

    def budget_s(self, budgets_s: Iterable[float]) -> float:
        """The time a batch has: the least of those in which a step fits at all.

        An answer is handed over with its whole batch, so the batch ends in time for the most urgent of its sessions;
        one that is too late for a single step is left out and must not cut the others short.
        """
        least = self._seconds[0] * self._level
        return min((value for value in budgets_s if value >= least), default=least)

    def rows(self, left_s: float, steps_left: int, soon: int) -> int:
        """Rows the next step may have; 0 if there is no time for one.

        The time left is shared evenly among the steps to come. If the rows that yield a draft ``soon`` don't fit into
        a share, they may have all of it: a few drafts are better than none.
        """
        share = self._affordable(left_s / steps_left)
        return share if share >= soon else min(soon, self._affordable(left_s))

    def _affordable(self, seconds: float) -> int:
        return bisect_right(self._seconds, seconds / self._level)


def _seconds(curve: Sequence[tuple[int, float]], rows: int) -> float:
    """The next measured point's time, for the steps of a curve are flat up to a tile; past the last: in proportion."""
    if not curve:
        return 0.0
    for measured, seconds in curve:
        if rows <= measured:
            return seconds
    measured, seconds = curve[-1]
    return seconds * rows / measured
