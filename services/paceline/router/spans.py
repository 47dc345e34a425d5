"""The telemetry seam: what the router tells of requests and rounds. The default tells nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from paceline.router.requests import Committed, Completed, Request
from paceline.speculation.messages import NO_TRACE, Trace


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """What one round came to. The tuples are parallel: one entry per committed token."""

    committed: Committed
    token_ids: tuple[int, ...]
    model_ids: tuple[str, ...]  # the proposer of an accepted token, else the verifier
    verifier_ids: tuple[str, ...]
    sources: tuple[str, ...]  # accepted | corrected | bonus | target_only
    positions: tuple[int, ...]  # within the output
    missed_draft: bool
    draft_us: int  # waited for the draft
    verify_us: int  # waited for the verdict
    network_us: int  # round trips less the workers' own residence time
    draft_worker: str
    verifier: str


class Handle(Protocol):
    """A request's span."""

    def trace(self) -> Trace:
        """The context that spans of workers hang under when no round is under way."""
        ...


class RouterSpans(Protocol):
    """Told of everything the router does for a request. Calls are on the round path: they must not block."""

    def start_request(self, request: Request) -> Handle: ...

    def place(self, handle: Any, session_id: str, seed: int) -> None:
        """What the request left open is settled: its session, and the seed of its noise."""
        ...

    def start_round(self, handle: Any, round_id: int) -> Trace:
        """A round begins; the context goes to both workers. A round whose verifier is lost is never ended."""
        ...

    def end_round(self, handle: Any, facts: RoundFacts) -> None: ...

    def end_request(self, handle: Any, outcome: Completed | BaseException) -> None: ...


class NoHandle:
    """A span nobody keeps; the caller's own context goes through to the workers."""

    __slots__ = ("_trace",)

    def __init__(self, trace: Trace = NO_TRACE) -> None:
        self._trace = trace

    def trace(self) -> Trace:
        return self._trace


class NoSpans:
    """Tells nobody."""

    def start_request(self, request: Request) -> NoHandle:
        return NoHandle(request.trace)

    def place(self, handle: Any, session_id: str, seed: int) -> None: ...

    def start_round(self, handle: Any, round_id: int) -> Trace:
        del round_id
        trace: Trace = handle.trace()
        return trace

    def end_round(self, handle: Any, facts: RoundFacts) -> None: ...

    def end_request(self, handle: Any, outcome: Completed | BaseException) -> None: ...
