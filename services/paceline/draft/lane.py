"""What waits for one drafter, and what it is working on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from paceline.draft.intake import Taken, hold_until
from paceline.draft.sessions import Waiting
from paceline.drafters.interface import Ask, Drafter, DraftSession, FeatureDrafter
from paceline.speculation.messages import DraftResult, Proposal

Answer = tuple[str, DraftResult]  # router id, result
FEW_ROWS = 64  # of features that wait for a question, to be taken in with it


@dataclass(frozen=True, slots=True)
class Batch:
    """What one drafter does next: forget sessions, take on sessions, take features in, propose."""

    drafter: Drafter
    closed: tuple[str, ...]
    opened: tuple[DraftSession, ...]
    waiting: tuple[Waiting, ...]
    asks: tuple[Ask, ...]  # parallel to waiting
    expired: tuple[Answer, ...]  # came too late to be worked on; to be sent at once
    features: tuple[Taken, ...] = ()
    reader: FeatureDrafter | None = None  # the drafter, if it reads features


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch came to."""

    proposals: tuple[Proposal, ...]  # parallel to the batch's asks
    started_s: float
    ended_s: float
    forgotten: frozenset[str] = frozenset()  # sessions whose features there is no room for any more


@dataclass(slots=True)
class Lane:
    """A drafter and what waits for it.

    ``changes`` are sessions it has yet to take on, or (None) to forget; they travel with the next batch because a
    drafter's state belongs to the thread that runs it. ``told`` are the sessions it has been told of.
    """

    drafter: Drafter
    queue: dict[str, Waiting] = field(default_factory=dict)
    changes: dict[str, DraftSession | None] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    features: list[Taken] = field(default_factory=list)
    running: Batch | None = None
    reader: FeatureDrafter | None = None  # the drafter, if it reads features

    def __post_init__(self) -> None:
        if isinstance(self.drafter, FeatureDrafter):
            self.reader = self.drafter

    @property
    def laden(self) -> bool:
        """Whether enough features came to be taken in by themselves.

        A question follows the last few at once, or not for a long time: taken in with it, they cost the machine, which
        may be computing the target's next step, no call of their own.
        """
        return sum(each.features.count for each in self.features) >= FEW_ROWS

    def due(self, now: float) -> tuple[list[Waiting], list[Waiting]]:
        """Takes the tasks out of the queue that came too late, and those that may be worked on now.

        The others wait for features on their way. The next ones of a session don't, once one has waited in vain.
        """
        late = [waiting for waiting in self.queue.values() if waiting.deadline_s <= now]
        live = []
        for waiting in self.queue.values():
            if waiting.deadline_s > now:
                until = self._held_until(waiting)
                if until <= now:
                    live.append(waiting)
                    waiting.held.fed.patient &= until == -math.inf
        for waiting in (*late, *live):
            del self.queue[waiting.task.fence.session_id]
        return late, live

    @property
    def held_until(self) -> float | None:
        """When the first task that waits for features does so no longer; None if no task does."""
        return min((self._held_until(waiting) for waiting in self.queue.values()), default=None)

    def _held_until(self, waiting: Waiting) -> float:
        return -math.inf if self.reader is None else hold_until(waiting)

    def forget(self, session_id: str) -> list[Taken]:
        """Returns the features that nobody needs now."""
        self.queue.pop(session_id, None)
        self.changes.pop(session_id, None)
        if session_id in self.told:
            self.changes[session_id] = None
        dropped = [each for each in self.features if each.features.session_id == session_id]
        if dropped:
            self.features = [each for each in self.features if each.features.session_id != session_id]
        return dropped

    def take_changes(self) -> tuple[tuple[str, ...], tuple[DraftSession, ...]]:
        closed = tuple(key for key, session in self.changes.items() if session is None)
        opened = tuple(session for session in self.changes.values() if session is not None)
        self.told.difference_update(closed)
        self.told.update(session.session_id for session in opened)
        self.changes = {}
        return closed, opened
