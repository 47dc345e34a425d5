"""The seam for tracing: what a step tells whoever turns it into spans.

A step becomes one ``paceline.step`` span and, for every round that rode in it, one ``paceline.verify`` span whose
parent is the round's own trace and which is linked to the step's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from paceline.speculation.messages import StepReport, Trace


@dataclass(frozen=True, slots=True)
class RoundSpan:
    """One round's part in one step. A round that is catching up rides in several steps; the last one has ``tokens``."""

    trace: Trace  # the parent
    session_id: str
    request_id: str
    tenant: str
    round_id: int
    rows: int  # rows of the step that were this round's
    verify_len: int = 0
    accepted: int = 0
    tokens: tuple[int, ...] = ()  # committed
    reused: int = 0  # tokens of the session that were in the KV state when it was opened


@dataclass(frozen=True, slots=True)
class StepSpan:
    """One step and the rounds in it."""

    step: StepReport
    model_id: str
    start_ns: int  # Unix time
    end_ns: int
    rounds: tuple[RoundSpan, ...]
    error: str = ""  # why the step failed, if it did


class Spans(Protocol):
    """Where steps are told."""

    def verify_step(self, span: StepSpan) -> None:
        """Record a step. Called on the event loop between steps: must not block or raise."""
        ...


class NoSpans:
    """Tells nobody."""

    def verify_step(self, span: StepSpan) -> None:
        """Nothing."""
