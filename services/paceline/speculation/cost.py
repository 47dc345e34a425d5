"""What a verify step costs by its rows, and what drafts cost by their number: measured once, corrected ever since."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

KNOTS = (1, 2, 4, 8, 16)  # rows at which a curve can bend, beside those it was measured at
RATE = 0.05  # weight of one pair of steps in the curve's shape
FAR = 0.3  # logarithm of what a pair of steps can say at most: beyond it, something else held one of them up
MEMORY = 30.0  # drafts that count in what drafts cost
SLOW = 3.0  # times what is expected: what took longer was held up


class Ema:
    """An exponential moving average; the first value counts in full."""

    __slots__ = ("_alpha", "value")

    def __init__(self, alpha: float = 0.2) -> None:
        self._alpha = alpha
        self.value: float | None = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else self.value + self._alpha * (value - self.value)

    def get(self, default: float) -> float:
        return default if self.value is None else self.value


class CostCurve:
    """Seconds of a step, piecewise linear in its rows, never falling.

    Its level follows the steps that are run. Its shape is corrected by pairs of consecutive steps of different rows:
    they meet the same machine, so their ratio says something even where the level drifts by more.

    Args:
        points: (rows, seconds). Without any, the first step seen makes the curve, a flat one.
    """

    def __init__(self, points: Sequence[tuple[int, float]] = ()) -> None:
        measured = _rising(sorted((rows, seconds) for rows, seconds in points if rows > 0 and seconds > 0))
        between = [rows for rows in KNOTS if measured and measured[0][0] < rows < measured[-1][0]]
        rows = sorted({*between, *(rows for rows, _ in measured)})
        self._rows = [float(each) for each in rows]
        self._seconds = [_interpolated(measured, each) for each in rows]
        self._scale = Ema()
        self._last: tuple[int, float] | None = None

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        if rows <= 0 or seconds <= 0:
            return
        if not self._rows:
            self._rows, self._seconds = [float(rows)], [seconds]
        if self._last is not None and self._last[0] != rows:
            before, took = self._last
            surprise = math.log(seconds / took) - math.log(self._shape(rows) / self._shape(before))
            surprise = min(FAR, max(-FAR, surprise))
            self._bend(rows, RATE * surprise)
            self._bend(before, -RATE * surprise)
        self._last = (rows, seconds)
        self._scale.add(seconds / self._shape(rows))

    def seconds(self, rows: float) -> float:
        """Expected seconds of a step; 0 when nothing is known yet."""
        return self._shape(rows) * self._scale.get(1.0) if self._rows else 0.0

    def _shape(self, rows: float) -> float:
        return _interpolated(list(zip(self._rows, self._seconds, strict=True)), rows)

    def _bend(self, rows: int, by: float) -> None:
        """Raise the curve there by a factor exp(by); the others follow where it would fall."""
        at = min(range(len(self._rows)), key=lambda i: abs(math.log(self._rows[i] / rows)))
        level = self._seconds[at] = self._seconds[at] * math.exp(by)
        for i, seconds in enumerate(self._seconds):
            self._seconds[i] = min(seconds, level) if i < at else max(seconds, level)


def _rising(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The closest curve that never falls (pool adjacent violators, in logarithms)."""
    pools: list[tuple[list[int], float]] = []  # rows, mean logarithm
    for rows, seconds in points:
        pool, level = [rows], math.log(seconds)
        while pools and pools[-1][1] > level:
            before, other = pools.pop()
            level = (other * len(before) + level * len(pool)) / (len(before) + len(pool))
            pool = [*before, *pool]
        pools.append((pool, level))
    return [(rows, math.exp(level)) for pool, level in pools for rows in pool]


def _interpolated(points: Sequence[tuple[float, float]], rows: float) -> float:
    """Linear between points, flat before the first, and on as between the last two."""
    at = bisect_left(points, (rows, 0.0))
    if at == 0 or len(points) == 1:
        return points[0][1]
    (x0, y0), (x1, y1) = points[at - 1 : at + 1] if at < len(points) else points[-2:]
    return max(y0 + (y1 - y0) * (rows - x0) / (x1 - x0), 1e-9) if x1 > x0 else y0


class DraftTimes:
    """Seconds from asking for K draft tokens to having them: a + b·K, by discounted least squares, a and b >= 0.

    Until different K were seen, all of it is put down to b: a smaller K that might be cheap is tried, and then known.
    """

    __slots__ = ("_k", "_kk", "_kt", "_n", "_t")

    def __init__(self) -> None:
        self._n = self._k = self._kk = self._t = self._kt = 0.0

    def add(self, k: int, seconds: float) -> None:
        """An answer to a question for ``k`` tokens came after so long."""
        if self._n:
            seconds = min(seconds, SLOW * self.seconds(k))
        keep = 1 - 1 / MEMORY
        self._n = keep * self._n + 1
        self._k = keep * self._k + k
        self._kk = keep * self._kk + k * k
        self._t = keep * self._t + seconds
        self._kt = keep * self._kt + k * seconds

    def seconds(self, k: float) -> float:
        """Expected seconds; 0 when nothing is known yet."""
        if not self._n:
            return 0.0
        rigid = self._n + 0.1  # the little that pulls a towards 0
        determinant = rigid * self._kk - self._k * self._k
        start = (self._t * self._kk - self._k * self._kt) / determinant
        each = (rigid * self._kt - self._k * self._t) / determinant
        if each < 0:
            start, each = self._t / self._n, 0.0
        elif start < 0:
            start, each = 0.0, self._kt / self._kk
        return start + each * k
