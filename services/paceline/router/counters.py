"""What the router counted since it started. Units are in the names; averages are left to whoever reads."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class RoundCounters:
    """Counted by the dispatcher."""

    answers_started: int = 0
    answers_completed: int = 0
    answers_failed: int = 0
    answers_cancelled: int = 0
    rounds: int = 0
    committed_tokens: int = 0
    drafted_tokens: int = 0
    verified_tokens: int = 0
    accepted_tokens: int = 0
    missed_drafts: int = 0
    ignored_messages: int = 0  # late, repeated, or of sessions that are over
    target_opens: int = 0
    draft_opens: int = 0
    target_resyncs: int = 0
    draft_resyncs: int = 0
    targets_lost: int = 0
    drafts_lost: int = 0
    class_changes: int = 0
    verify_batches: int = 0
    verify_batch_sessions: int = 0
    router_us: float = 0.0
    draft_wait_us: int = 0
    verify_wait_us: int = 0
    network_us: int = 0


@dataclass(slots=True)
class LinkCounters:
    """Counted by the connection to one worker."""

    messages_sent: int = 0
    messages_received: int = 0
    sessions_sent: int = 0  # tasks in the messages sent
    sessions_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    connects: int = 0
    losses: int = 0


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker as the router sees it."""

    address: str
    side: str  # target or draft
    up: bool
    error: str  # what it is down for; empty while it is up
    sessions: int
    breaker: str  # of draft workers; empty for targets
    cohorts: int  # of targets; 0 for draft workers
    link: LinkCounters


@dataclass(frozen=True, slots=True)
class RouterStats:
    """A snapshot."""

    under_way: int
    waiting: int
    rounds: RoundCounters
    workers: tuple[WorkerState, ...] = field(default=())

    @property
    def messages(self) -> int:
        """Round messages, both ways, all workers."""
        return sum(w.link.messages_sent + w.link.messages_received for w in self.workers)

    @property
    def messages_per_token(self) -> float | None:
        """Round messages per committed token; None before the first."""
        return self.messages / self.rounds.committed_tokens if self.rounds.committed_tokens else None

    @property
    def sessions_per_message(self) -> float | None:
        """Sessions that rode in a round message, on average; None before the first."""
        ridden = sum(w.link.sessions_sent + w.link.sessions_received for w in self.workers)
        return ridden / self.messages if self.messages else None

    @property
    def router_share(self) -> float | None:
        """The router's own time over the time of all rounds (waiting for workers included); None before the first."""
        whole = self.rounds.router_us + self.rounds.draft_wait_us + self.rounds.verify_wait_us
        return self.rounds.router_us / whole if whole else None
