"""Whether confidences mean what they say, and what makes them: expected calibration error, and sequential temperatures.

A drafter's confidence c_j is its estimate that draft j is accepted if those before it are; the product up to j is the
estimated survival. DSpark calibrates survivals from left to right: with the temperatures of all earlier positions
fixed, position j's is the one of a grid with the least calibration error of the survival at j. What lies after the
tokens verified was not observed and is left out; what lies after a rejection did not survive, which was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from paceline.speculation.figures import RoundSeen

BINS = 10
GRID = tuple(2 ** (step / 8) for step in range(-16, 17))  # temperatures, 1/4 to 4
LEAST_ROUNDS = 30  # with fewer at a position, its temperature stays 1
TINY = 1e-6

Pairs = Sequence[tuple[float, bool]]  # estimate, outcome


def ece(pairs: Pairs) -> float | None:
    """Expected calibration error over BINS equal bins: mean distance of estimate and frequency; None without pairs."""
    if not pairs:
        return None
    bins: dict[int, list[tuple[float, bool]]] = {}
    for estimate, outcome in pairs:
        bins.setdefault(min(BINS - 1, int(estimate * BINS)), []).append((estimate, outcome))
    off = sum(abs(sum(estimate - outcome for estimate, outcome in each)) for each in bins.values())
    return off / len(pairs)


def scaled(confidence: float, temperature: float) -> float:
    """A probability whose logit is divided by a temperature."""
    inside = min(1 - TINY, max(TINY, confidence))
    return 1 / (1 + math.exp(-math.log(inside / (1 - inside)) / temperature))


def survivals(rounds: Sequence[RoundSeen], position: int, temperatures: Sequence[float]) -> list[tuple[float, bool]]:
    """Estimated and real survival at a position (from 0); without a temperature for a position it is 1."""
    pairs = []
    for each in rounds:
        if each.confidence and each.verified > position:
            estimate = 1.0
            for place, confidence in enumerate(each.confidence[: position + 1]):
                temperature = temperatures[place] if place < len(temperatures) else 1.0
                estimate *= confidence if temperature == 1 else scaled(confidence, temperature)
            pairs.append((estimate, each.accepted > position))
    return pairs


def error(rounds: Sequence[RoundSeen], temperatures: Sequence[float] = ()) -> float | None:
    """Calibration error of survivals at all positions together."""
    most = max((each.verified for each in rounds), default=0)
    return ece([pair for position in range(most) for pair in survivals(rounds, position, temperatures)])


def temperatures(rounds: Sequence[RoundSeen]) -> tuple[float, ...]:
    """Sequential temperature scaling: one temperature for each position that was seen often enough."""
    found: tuple[float, ...] = ()
    most = max((each.verified for each in rounds), default=0)
    for position in range(most):
        enough = len(survivals(rounds, position, found)) >= LEAST_ROUNDS
        found = (*found, min(GRID, key=_error_at(rounds, position, found)) if enough else 1.0)
    return found


def _error_at(
    rounds: Sequence[RoundSeen], position: int, before: tuple[float, ...]
) -> Callable[[float], tuple[float, float]]:
    def at(temperature: float) -> tuple[float, float]:
        value = ece(survivals(rounds, position, (*before, temperature)))
        assert value is not None, "only positions that were seen are fitted"
        return value, abs(math.log(temperature))  # of equals, the one that changes least

    return at
