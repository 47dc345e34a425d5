"""How far drafts get, by position: what is expected of the next proposal from those seen.

A position is at stake when all before it were accepted. What lies after the first rejection, after the tokens asked for
or after the tokens verified was never observed, so what is counted is conditional, and a product of conditional
estimates is a survival (Kaplan and Meier, 1958). Counts are discounted, for text changes, and start from a prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Protocol

POSITIONS = 64  # the most draft tokens a request may ask for


class Expected(Protocol):
    """Anything that can stand for what is not known yet."""

    def accepted(self, position: int) -> float:
        """Chance that the draft at a position (from 0) is there and accepted, if all before it were."""
        ...

    def drafted(self, position: int) -> float:
        """Chance that there is a draft at a position, if there is one at the position before."""
        ...


class Guess:
    """The same chance everywhere, before anything was seen."""

    def __init__(self, accepted: float, drafted: float = 1.0) -> None:
        self._accepted, self._drafted = accepted, drafted

    def accepted(self, position: int) -> float:
        """See Expected."""
        del position
        return self._accepted

    def drafted(self, position: int) -> float:
        """See Expected."""
        del position
        return self._drafted


class Survival:
    """What was seen of one kind of drafts, over a prior.

    Args:
        prior: what is expected before anything was seen.
        weight: proposals that the prior counts for.
        memory: proposals that are remembered.
    """

    __slots__ = ("_drafted", "_keep", "_passed", "_prior", "_reached", "_stake", "_weight")

    def __init__(self, prior: Expected, *, weight: float, memory: float) -> None:
        self._prior, self._weight, self._keep = prior, weight, 1 - 1 / memory
        self._stake = [0.0] * POSITIONS  # proposals that got so far, by position
        self._passed = [0.0] * POSITIONS  # of these, accepted here, too
        self._reached = [0.0] * POSITIONS  # asked for a token here, with one before it
        self._drafted = [0.0] * POSITIONS  # of these, got one

    def accepted(self, position: int) -> float:
        """See Expected."""
        return self._chance(self._passed, self._stake, position, self._prior.accepted(position))

    def drafted(self, position: int) -> float:
        """See Expected."""
        return self._chance(self._drafted, self._reached, position, self._prior.drafted(position))

    def _chance(self, hits: Sequence[float], of: Sequence[float], position: int, prior: float) -> float:
        return (hits[position] + self._weight * prior) / (of[position] + self._weight)

    def add(self, *, asked: int, drafted: int, verified: int, accepted: int) -> None:
        """A proposal of ``drafted`` tokens came, of ``asked``; of ``verified`` ones, ``accepted`` were."""
        assert accepted <= verified <= drafted <= asked, (asked, drafted, verified, accepted)
        self.fade(1.0)
        for position in range(min(drafted + 1, asked, POSITIONS)):
            self._reached[position] += 1
            self._drafted[position] += position < drafted
        clipped = accepted == verified < drafted  # the next one was there, and nobody looked at it
        for position in range(min(accepted + (not clipped), asked, POSITIONS)):
            self._stake[position] += 1
            self._passed[position] += position < accepted

    def fade(self, proposals: float) -> None:
        """Remember less, as after so many proposals."""
        keep = self._keep**proposals
        for counts in (self._stake, self._passed, self._reached, self._drafted):
            counts[:] = [count * keep for count in counts]

    def gains(self, most: int) -> list[float]:
        """Expected accepted tokens of a proposal asked for 0, 1, … ``most`` tokens."""
        chances = accumulate((self.accepted(position) for position in range(most)), mul)
        return list(accumulate(chances, initial=0.0))

    def lengths(self, most: int) -> list[float]:
        """Expected draft tokens of a proposal asked for 0, 1, … ``most`` tokens."""
        chances = accumulate((self.drafted(position) for position in range(most)), mul)
        return list(accumulate(chances, initial=0.0))
