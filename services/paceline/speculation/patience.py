"""How long a session waits for drafts: one deadline, once. After a miss it asks without waiting until that pays."""

from __future__ import annotations

from paceline.speculation.messages import Fence

MAX_DOUBLINGS = 6


class Patience:
    """A session's questions to its draft worker.

    Args:
        deadline_s: how long an answer is of use.
    """

    __slots__ = ("_asked", "_deadline_s", "_hold_until", "_misses", "asked_at")

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self.forget()

    def forget(self) -> None:
        """Another worker, or another lease: nothing is held against it."""
        self.asked_at = 0.0  # when the last question was asked
        self._asked: Fence | None = None  # that question, until it is answered or given up
        self._misses = 0  # in a row
        self._hold_until = float("-inf")

    @property
    def waits(self) -> bool:
        """Whether a round waits for its answer."""
        return self._misses == 0

    def may_ask(self, now: float) -> bool:
        """After a miss: one question at a time, and a pause, doubled, after each that was in vain."""
        if self._misses and self._asked is not None:
            if now >= self.asked_at + self._deadline_s:
                self.missed(now)
            return False
        return now >= self._hold_until

    def ask(self, fence: Fence, now: float) -> None:
        """A question is asked; an earlier one is given up."""
        self._asked, self.asked_at = fence, now

    def expects(self, fence: Fence) -> bool:
        """Whether this answers the last question."""
        return fence == self._asked

    def answered(self, now: float) -> float:
        """The last question is answered, by whatever: a repetition is foreign from here on. Returns seconds taken."""
        self._asked = None
        took_s = now - self.asked_at
        if took_s <= self._deadline_s:
            self._misses, self._hold_until = 0, float("-inf")
        return took_s

    def missed(self, now: float) -> None:
        """The last question was not answered in time."""
        self._asked = None
        self._hold_until = now + self._deadline_s * 2 ** min(self._misses, MAX_DOUBLINGS)
        self._misses += 1
