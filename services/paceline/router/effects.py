"""What the dispatcher wants done: messages to workers, calls, events for clients. Whoever drives it does them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from paceline.router.requests import Event
from paceline.speculation.errors import PacelineError
from paceline.speculation.leases import Side
from paceline.speculation.messages import DraftTask, SessionOpen, VerifyTask


@dataclass(frozen=True, slots=True)
class OpenCall:
    """Open a session on a worker; the outcome goes back through ``opened`` or ``open_failed``."""

    side: Side
    address: str
    opening: SessionOpen
    timeout_s: float


@dataclass(frozen=True, slots=True)
class ReleaseCall:
    """Release a session on a worker. Nobody waits for the outcome; workers also release by time to live."""

    side: Side
    address: str
    session_id: str
    lease_epoch: int


@dataclass(slots=True)
class Effects:
    """All that one input led to. Tasks are per worker, to leave as one message."""

    drafts: dict[str, list[DraftTask]] = field(default_factory=lambda: defaultdict(list))
    verifies: dict[str, list[VerifyTask]] = field(default_factory=lambda: defaultdict(list))
    opens: list[OpenCall] = field(default_factory=list)
    releases: list[ReleaseCall] = field(default_factory=list)
    events: list[tuple[str, Event | PacelineError]] = field(default_factory=list)  # session id, event or the end
    resets: list[tuple[Side, str]] = field(default_factory=list)  # connections to give up and make anew

    def __bool__(self) -> bool:
        return any((self.drafts, self.verifies, self.opens, self.releases, self.events, self.resets))
