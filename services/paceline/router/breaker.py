"""A circuit breaker per draft worker: whom a round may still wait for.

closed ── a miss (see ``missed``), stream lost ──▶ open ── pause over ──▶ half-open: one session asks
   ▲                                                 ▲                        │
   └───────────────── answered in time ──────────────┼────────────────────────┤
                                                     └──────── missed ────────┘
"""

from __future__ import annotations

from enum import Enum

MISS_LIMIT = 3
MAX_DOUBLINGS = 16


class BreakerState(Enum):
    """Whether rounds ask a draft worker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Times are in the caller's clock, seconds.

    Args:
        patience_s: how long a probe may take.
        first_pause_s: how long it stays open at first; doubles with every failure in a row.
        max_pause_s: the longest pause.
    """

    def __init__(self, *, patience_s: float, first_pause_s: float, max_pause_s: float) -> None:
        self.state = BreakerState.CLOSED
        self.opened = 0  # how often, for the metrics
        self._patience_s = patience_s
        self._first_pause_s = first_pause_s
        self._max_pause_s = max_pause_s
        self._failures = 0
        self._misses = 0
        self._until = 0.0
        self._heard = float("-inf")
        self._probe: str | None = None
        self._probed = 0.0

    @property
    def closed(self) -> bool:
        """Whether rounds wait for answers; a probe's round does not."""
        return self.state is BreakerState.CLOSED

    def allows(self, session_id: str, now: float) -> bool:
        """Whether this session may ask now. Half-open lets one session ask, and waits for what becomes of it."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN and now >= self._until:
            self.state, self._probe = BreakerState.HALF_OPEN, None
        if self.state is not BreakerState.HALF_OPEN:
            return False
        if self._probe is None:
            self._probe, self._probed = session_id, now
            return True
        if now > self._probed + self._patience_s:
            self.fail(now)
        return False

    def heard(self, now: float) -> None:
        """Something, in time or not, came from the worker."""
        self._heard = now

    def answered(self) -> None:
        """An answer came in time."""
        self.state, self._probe = BreakerState.CLOSED, None
        self._failures = self._misses = 0

    def missed(self, asked: float, now: float) -> bool:
        """A question asked at ``asked`` was not answered in time; True if that opens the breaker.

        A worker that said nothing at all since is taken for lost; one that answers others is given more chances.
        """
        self._misses += 1
        if not self.closed:
            return False  # asked before it opened
        if self._heard < asked or self._misses >= MISS_LIMIT:
            self.fail(now)
            return True
        return False

    def forget_probe(self, session_id: str) -> None:
        """The session that probes ended or left before its round was decided; another may probe."""
        if self._probe == session_id:
            self._probe = None

    def fail(self, now: float) -> None:
        """Open."""
        self.state, self._probe = BreakerState.OPEN, None
        self.opened += 1
        self._misses = 0
        self._until = now + min(self._max_pause_s, self._first_pause_s * 2 ** min(self._failures, MAX_DOUBLINGS))
        self._failures += 1
