"""What steps cost by their rows, measured beside whatever else the machine is doing.

Others compute in bursts: a worker that loads its model beside this one makes the steps that meet it several times as
long. So no row count is measured in one go: passes go over all of them, and the least time of each counts. One is
settled when two passes after the first, which warms up, have met its least time, and when that is plausible beside the
others', for rows never make a step faster, and twice the rows never take more than two steps. Those that are not
settled are in the next pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

BUDGET_S = 1.5
MET = 1.1  # times the least: a run that comes so near has met it
PLAUSIBLE = 1.05  # times what is possible, for timings jitter
MEETINGS = 2  # that settle a row count
MEETINGS_AGAINST_ODDS = 4  # that settle one whose time looks impossible: then it is how this machine is
SURE = 2  # row counts, the smallest, that are run so many times whatever that takes

Step = Callable[[], object]


def measure(
    step_of: Callable[[int], Step], counts: Sequence[int], clock: Callable[[], float], *, budget_s: float = BUDGET_S
) -> tuple[tuple[int, float], ...]:
    """Seconds of a step by its rows.

    Three passes do on a quiet machine. On a busy one it ends with the step after ``budget_s``; where steps are too long
    for that, with two runs of the two smallest row counts.

    Args:
        step_of: prepares what runs a step of so many rows to its end, again and again.
        counts: row counts, ascending. The larger ones may be left out for lack of time.
        clock: seconds.

    Returns:
        (rows, seconds), ascending rows.
    """
    end, timings = clock() + budget_s, _Timings(counts)
    steps: dict[int, Step] = {}

    def may_run(rows: int) -> bool:
        return timings.required(rows) or clock() + timings.least(rows) <= end

    while due := [rows for rows in timings.unsettled() if may_run(rows)]:
        for rows in filter(may_run, due):
            step = steps.get(rows) or steps.setdefault(rows, step_of(rows))
            begun = clock()
            step()
            timings.add(rows, clock() - begun)
    return timings.curve()


class _Timings:
    """What was measured so far. counts: ascending."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._counts = tuple(counts)
        self._seen: dict[int, list[float]] = {rows: [] for rows in counts}

    def add(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        self._seen[rows].append(seconds)

    def curve(self) -> tuple[tuple[int, float], ...]:
        """(rows, seconds) of the row counts that were run. Where time ran out before one was settled, the others'
        times have a say."""
        known = [rows for rows, times in self._seen.items() if times]
        return tuple(
            (rows, self.least(rows) if self._settled(rows) else min(self.least(rows), self._most(rows)))
            for rows in known
        )

    def least(self, rows: int) -> float:
        """The least seconds seen; 0 of a row count that was not run."""
        return min(self._seen[rows], default=0.0)

    def unsettled(self) -> list[int]:
        """Row counts whose least time is not sure yet, ascending."""
        return [rows for rows in self._counts if not self._settled(rows)]

    def required(self, rows: int) -> bool:
        """Whether a row count is run whatever that takes."""
        return rows in self._counts[:SURE] and len(self._seen[rows]) < SURE

    def _settled(self, rows: int) -> bool:
        met = sum(seconds <= MET * self.least(rows) for seconds in self._seen[rows][1:])
        plausible = self.least(rows) <= PLAUSIBLE * self._most(rows)
        return met >= (MEETINGS if plausible else MEETINGS_AGAINST_ODDS)

    def _most(self, rows: int) -> float:
        """Seconds that the other row counts leave possible."""
        others = [(count, self.least(count)) for count, times in self._seen.items() if times and count != rows]
        steps = (seconds * -(-rows // count) for count, seconds in others)  # one, of more rows
        return min(steps, default=math.inf)
