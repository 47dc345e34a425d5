"""What n-gram lookups have been worth, by how much text they had found again.

A lookup is free, so it is made and scored in every round, whoever's drafts were taken: what the target committed after
it says how much of it would have been accepted. (Exactly so: a draft is accepted if and only if it is what is
committed.) Longer agreements are better evidence; what each is worth depends on the text, so a session's own lookups
count over those of all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.speculation.survival import POSITIONS, Guess, Survival

STEPS = (3, 4, 6, 9, 17)  # agreements of one bucket end before the next of these
PRIORS = (0.3, 0.4, 0.5, 0.65, 0.8, 0.9)  # chance that the next token agrees as well, before anything was seen
PRIOR_WEIGHT, LONG_MEMORY = 8.0, 2000.0
OWN_WEIGHT, MEMORY = 6.0, 60.0
MAX_PENDING = 32


def bucket_of(matched: int) -> int:
    """Which lookups one that agreed on so many tokens is compared with."""
    return bisect_right(STEPS, matched)


class Experience:
    """Of all sessions."""

    def __init__(self) -> None:
        self.buckets = tuple(Survival(Guess(prior), weight=PRIOR_WEIGHT, memory=LONG_MEMORY) for prior in PRIORS)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A lookup nobody can judge yet. ``base`` tokens were there before it."""

    base: int
    tokens: tuple[int, ...]
    bucket: int


class Evidence:
    """Of one session, over that of all."""

    def __init__(self, experience: Experience) -> None:
        self._experience = experience
        self._own = tuple(Survival(all_, weight=OWN_WEIGHT, memory=MEMORY) for all_ in experience.buckets)
        self._pending: deque[_Pending] = deque(maxlen=MAX_PENDING)

    def chances(self, matched: int, count: int) -> tuple[float, ...]:
        """Estimated conditional acceptance of each token of a lookup."""
        own = self._own[bucket_of(matched)]
        return tuple(own.accepted(position) for position in range(min(count, POSITIONS)))

    def made(self, base: int, tokens: tuple[int, ...], matched: int) -> None:
        """A lookup was made after so many tokens."""
        if tokens:
            self._pending.append(_Pending(base, tokens[:POSITIONS], bucket_of(matched)))

    def settle(self, text: Sequence[int], length: int) -> None:
        """Judge the lookups that ``text[:length]`` decides."""
        for _ in range(len(self._pending)):
            pending = self._pending.popleft()
            accepted = agreeing(pending.tokens, text, pending.base, length)
            if accepted < len(pending.tokens) and pending.base + accepted >= length:
                self._pending.append(pending)
                continue
            for survival in (self._experience.buckets[pending.bucket], self._own[pending.bucket]):
                count = len(pending.tokens)
                survival.add(asked=count, drafted=count, verified=count, accepted=accepted)


def agreeing(drafts: Sequence[int], text: Sequence[int], base: int, length: int) -> int:
    """How many of the drafts after ``base`` are what ``text[:length]`` went on with."""
    most = min(len(drafts), length - base)
    return next((i for i in range(most) if drafts[i] != text[base + i]), most)
