"""What a verify step costs by its rows: the curve a worker measured at start-up, scaled by what is seen since."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


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
    """Seconds of a step, piecewise linear in its rows.

    Args:
        points: (rows, seconds). Without any, the first step seen makes the curve, a flat one.
    """

    def __init__(self, points: Sequence[tuple[int, float]] = ()) -> None:
        self._points = sorted((rows, seconds) for rows, seconds in points if rows > 0 and seconds > 0)
        self._scale = Ema()

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        if rows <= 0 or seconds <= 0:
            return
        if not self._points:
            self._points = [(rows, seconds)]
        self._scale.add(seconds / self._shape(rows))

    def seconds(self, rows: float) -> float:
        """Expected seconds of a step; 0 when nothing is known yet."""
        return self._shape(rows) * self._scale.get(1.0) if self._points else 0.0

    def _shape(self, rows: float) -> float:
        points = self._points
        at = bisect_left(points, (rows, 0.0))
        if at == 0:
            return points[0][1]
        if len(points) == 1:
            return points[0][1]
        (x0, y0), (x1, y1) = points[at - 1 : at + 1] if at < len(points) else points[-2:]
        return max(y0 + (y1 - y0) * (rows - x0) / (x1 - x0), 1e-9) if x1 > x0 else y0
