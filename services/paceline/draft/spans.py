"""The seam for tracing: what a run of a drafter tells whoever turns it into spans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from paceline.speculation.messages import Trace


@dataclass(frozen=True, slots=True)
class DraftSpan:
    """One session's part in one run: a ``paceline.draft`` span whose parent is the round's own trace."""

    trace: Trace  # the parent
    session_id: str
    round_id: int
    asked: int  # K
    drafted: int


@dataclass(frozen=True, slots=True)
class RunSpan:
    """One run of a drafter and the sessions in it."""

    drafter: str
    model_id: str  # the proposer
    start_ns: int  # Unix time
    end_ns: int
    drafts: tuple[DraftSpan, ...]
    error: str = ""  # why the run failed, if it did


class DraftSpans(Protocol):
    """Where runs are told."""

    def draft_run(self, span: RunSpan) -> None:
        """Record a run. Called on the event loop between runs: must not block or raise."""
        ...


class NoSpans:
    """Tells nobody."""

    def draft_run(self, span: RunSpan) -> None:
        """Nothing."""
