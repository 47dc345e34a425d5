"""The two halves of a session's lease, on a target and on a draft worker, and the epochs that fence them.

Both halves draw their epochs from one counter of the session. Whoever opens a half takes the next number, so an
answer of an earlier opening, of either side, can be told from one of the present.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from paceline.speculation.features import Feed


class Side(Enum):
    """Which worker of a session is meant."""

    TARGET = "target"
    DRAFT = "draft"


@dataclass(slots=True)
class Lease:
    """A session's place on one worker."""

    worker: str  # address
    epoch: int
    deadline: float  # the opening counts as failed from this moment on, in the caller's clock, seconds
    held_len: int  # tokens the worker is known to hold once it has answered
    incarnation: str = ""  # empty until the worker has answered the opening
    feed: Feed | None = None  # where context features go, if the drafter needs them

    @property
    def is_open(self) -> bool:
        return bool(self.incarnation)


class Leases:
    """The leases of one session.

    Args:
        epoch: the last epoch given out by anybody; 0 for a new session.
    """

    __slots__ = ("_held", "epoch")

    def __init__(self, epoch: int = 0) -> None:
        self.epoch = epoch
        self._held: dict[Side, Lease] = {}

    def get(self, side: Side) -> Lease | None:
        """The lease of a side, whether open or being opened."""
        return self._held.get(side)

    def opened(self, side: Side) -> Lease | None:
        """The lease of a side if the worker holds the session."""
        lease = self._held.get(side)
        return lease if lease is not None and lease.is_open else None

    @property
    def feed(self) -> Feed | None:
        """Where context features go, if the drafter needs them; also while the draft worker is still opening."""
        lease = self._held.get(Side.DRAFT)
        return lease.feed if lease is not None else None

    def take(self, side: Side, worker: str, deadline: float, held_len: int) -> Lease:
        """Start opening a side, with ``held_len`` tokens, under the next epoch. What it held before is forgotten."""
        self.epoch += 1
        lease = Lease(worker, self.epoch, deadline, held_len)
        self._held[side] = lease
        return lease

    def confirm(self, side: Side, epoch: int, incarnation: str) -> bool:
        """The worker opened; False if that opening is not the present one."""
        lease = self._held.get(side)
        if lease is None or lease.epoch != epoch or lease.is_open:
            return False
        lease.incarnation = incarnation
        return True

    def drop(self, side: Side) -> Lease | None:
        """Forget a side; returns what it held."""
        return self._held.pop(side, None)

    def overdue(self, now: float) -> list[Side]:
        """Sides whose opening has taken too long."""
        return [side for side, lease in self._held.items() if not lease.is_open and now >= lease.deadline]
