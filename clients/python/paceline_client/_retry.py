"""When to try again, and when to give up. No clock, no sleep, no global randomness: they come in as arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from paceline_client._errors import Failure, InvalidRequestError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How hard to try when a server is lost, before and in the middle of an answer.

    Raises InvalidRequestError if a value is out of range.
    """

    attempts: int = 6
    """Attempts in a row that bring no new token, the first call of an answer not counted; 0 never tries again."""
    total_attempts: int = 20
    """Attempts over a whole answer, so that a request that kills servers doesn't go around killing them."""
    budget_s: float = 30.0
    """Seconds spent over a whole answer without a stream that makes progress."""
    first_delay_s: float = 0.1
    """Delay before the first attempt, in seconds; it doubles from one attempt to the next. A random half of it is
    taken off each time, lest the clients of a lost router come back all at once."""
    max_delay_s: float = 2.0
    """Longest delay between attempts, in seconds, unless the server names a longer one."""
    retry_overloaded: bool = False
    """Whether to wait and try again when the server is full, before an answer has begun. One that has begun always
    does: it would be lost otherwise."""

    def __post_init__(self) -> None:
        for field in ("attempts", "total_attempts"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1000:
                raise InvalidRequestError.of_field(f"retry.{field}", expected="a whole number, 0 to 1000", got=value)
        for field in ("budget_s", "first_delay_s", "max_delay_s"):
            seconds = getattr(self, field)
            if not isinstance(seconds, (int, float)) or not (math.isfinite(seconds) and seconds >= 0):
                raise InvalidRequestError.of_field(f"retry.{field}", expected="seconds, 0 or more", got=seconds)


class Retry:
    """Counts the attempts and the lost time of one answer against a policy."""

    def __init__(self, policy: RetryPolicy, random: Callable[[], float]) -> None:
        self._policy = policy
        self._random = random
        self._since: float | None = None  # start of the outage under way
        self._past_s = 0.0
        self._row = 0
        self.total = 0

    def lost_s(self, now: float) -> float:
        """Seconds spent in outages so far, the one under way included."""
        return self._past_s + (0.0 if self._since is None else now - self._since)

    def progress(self, now: float) -> None:
        """The answer moved on: the outage, if there was one, is over."""
        self._past_s = self.lost_s(now)
        self._since = None
        self._row = 0

    def failed(self, failure: Failure, now: float) -> float | None:
        """Seconds to wait before the next attempt; None to give up."""
        if self._since is None:
            self._since = now
        if self._row >= self._policy.attempts or self.total >= self._policy.total_attempts:
            return None
        delay = self._backoff() + (failure.retry_after_s or 0.0)
        if self.lost_s(now) + delay > self._policy.budget_s:
            return None
        self._row += 1
        self.total += 1
        return delay

    def unary(self, failure: Failure, now: float, deadline: float) -> float | None:
        """As ``failed``, for a call without a stream: also None if repeating won't help or can't make the deadline."""
        if not (failure.transient or (failure.overload and self._policy.retry_overloaded)):
            return None
        delay = self.failed(failure, now)
        return None if delay is None or now + delay >= deadline else delay

    def _backoff(self) -> float:
        # The exponent is bounded by the policy's attempts; 2.0**1000 is still a float.
        longest = min(self._policy.max_delay_s, self._policy.first_delay_s * 2.0**self._row)
        return longest * (1 - self._random() / 2)
