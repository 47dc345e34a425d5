"""Statistics of paired timings: medians, ratios pair by pair, and 95 % intervals."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import stats as scipy_stats

MIN_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """Geometric mean of the pairwise ratios, with a t interval on their logarithms.

    Raises ValueError with fewer than five pairs: an interval from less means nothing.
    """
    if len(numerator) != len(denominator) or len(numerator) < MIN_REPEATS:
        raise ValueError(f"expected at least {MIN_REPEATS} pairs, got {len(numerator)} and {len(denominator)}")
    logs = [math.log(a / b) for a, b in zip(numerator, denominator, strict=True)]
    mean = statistics.fmean(logs)
    spread = statistics.stdev(logs) / math.sqrt(len(logs))
    reach = float(scipy_stats.t.ppf(0.975, len(logs) - 1)) * spread
    return Interval(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach))


def interleaved(repeats: int, *works: Callable[[], object]) -> list[list[float]]:
    """Seconds of each work, run in turn (A B A B …) after one warm-up of each: a drifting machine drifts for all."""
    for work in works:
        work()
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, taken in zip(works, seconds, strict=True):
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    return seconds


def spread(values: Sequence[float]) -> str:
    """Median and range, for people."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}–{max(values):.3g})"


def at_most(name: str, interval: Interval, bar: float) -> bool:
    """Print a bar; it is missed only when even the low end of the interval lies above it."""
    met = interval.low <= bar
    print(f"bar: {name} at most {bar:g}: {interval} {'met' if met else 'MISSED'}")
    return met


def at_least(name: str, interval: Interval, bar: float) -> bool:
    """Print a bar; it is missed only when even the high end of the interval lies below it."""
    met = interval.high >= bar
    print(f"bar: {name} at least {bar:g}: {interval} {'met' if met else 'MISSED'}")
    return met
