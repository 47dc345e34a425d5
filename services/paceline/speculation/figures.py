"""What rounds came to, in the words of DESIGN.md, section 1: accepted length, acceptance by position, rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RoundSeen:
    """One round, as a client sees it."""

    drafted: int
    verified: int
    accepted: int
    committed: int
    drafter: str = ""
    confidence: tuple[float, ...] = ()  # of each draft token, or empty

    def __post_init__(self) -> None:
        assert 0 <= self.accepted <= self.verified <= self.drafted, self
        assert not self.confidence or len(self.confidence) >= self.verified, self


class Figures:
    """Totals over rounds. Ratios without a denominator are None."""

    def __init__(self, rounds: Iterable[RoundSeen]) -> None:
        self.rounds = tuple(rounds)
        self.verify_rounds = tuple(each for each in self.rounds if each.verified)

    @property
    def tau(self) -> float | None:
        """Accepted length τ: committed per round, the corrected or bonus token included, where drafts were verified."""
        return _ratio(sum(each.committed for each in self.verify_rounds), len(self.verify_rounds))

    @property
    def committed_per_step(self) -> float | None:
        """Committed tokens per round, over all rounds."""
        return _ratio(sum(each.committed for each in self.rounds), len(self.rounds))

    @property
    def over_drafted(self) -> float | None:
        """Accepted over drafted tokens."""
        return _ratio(self._accepted, sum(each.drafted for each in self.rounds))

    @property
    def over_verified(self) -> float | None:
        """Accepted over verified tokens."""
        return _ratio(self._accepted, sum(each.verified for each in self.rounds))

    @property
    def _accepted(self) -> int:
        return sum(each.accepted for each in self.rounds)

    @property
    def positions(self) -> int:
        """Most draft tokens verified in one round."""
        return max((each.verified for each in self.rounds), default=0)

    def at_stake(self, position: int) -> int:
        """Rounds in which the draft at a position (from 0) was verified with all before it accepted."""
        return sum(each.verified > position and each.accepted >= position for each in self.rounds)

    def acceptance(self) -> tuple[float | None, ...]:
        """Conditional acceptance by position: accepted, of those at stake."""
        accepted = [sum(each.accepted > position for each in self.rounds) for position in range(self.positions)]
        return tuple(_ratio(count, self.at_stake(position)) for position, count in enumerate(accepted))

    def survival(self) -> tuple[float, ...]:
        """Chance that the drafts up to a position are all accepted: the product of the conditional ones."""
        out: list[float] = []
        for chance in self.acceptance():
            out.append((out[-1] if out else 1.0) * (chance or 0.0))
        return tuple(out)


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of those there are."""
    there = [value for value in values if value is not None]
    return _ratio(sum(there), len(there))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
