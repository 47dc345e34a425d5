"""What waits for one drafter, and what it is working on."""

from __future__ import annotations

from dataclasses import dataclass, field

from paceline.draft.sessions import Waiting
from paceline.drafters.interface import Ask, Drafter, DraftSession
from paceline.speculation.messages import DraftResult, Proposal

Answer = tuple[str, DraftResult]  # router id, result


@dataclass(frozen=True, slots=True)
class Batch:
    """What one drafter does next: forget sessions, take on sessions, propose."""

    drafter: Drafter
    closed: tuple[str, ...]
    opened: tuple[DraftSession, ...]
    waiting: tuple[Waiting, ...]
    asks: tuple[Ask, ...]  # parallel to waiting
    expired: tuple[Answer, ...]  # came too late to be worked on; to be sent at once


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch came to."""

    proposals: tuple[Proposal, ...]  # parallel to the batch's asks
    started_s: float
    ended_s: float


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
    running: Batch | None = None

    def forget(self, session_id: str) -> None:
        self.queue.pop(session_id, None)
        self.changes.pop(session_id, None)
        if session_id in self.told:
            self.changes[session_id] = None

    def take_changes(self) -> tuple[tuple[str, ...], tuple[DraftSession, ...]]:
        closed = tuple(key for key, session in self.changes.items() if session is None)
        opened = tuple(session for session in self.changes.values() if session is not None)
        self.told.difference_update(closed)
        self.told.update(session.session_id for session in opened)
        self.changes = {}
        return closed, opened
