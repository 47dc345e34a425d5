"""What a session's rounds start from, and what they ask of the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from paceline.speculation.errors import PacelineError
from paceline.speculation.leases import Lease, Side
from paceline.speculation.messages import (
    EMPTY_PROPOSAL,
    NO_TRACE,
    DraftTask,
    Finish,
    Proposal,
    SessionOpen,
    Trace,
    Verdict,
    VerifyTask,
)
from paceline.speculation.params import SamplingParams, SpeculationParams


class Phase(Enum):
    """Where a session's round stands."""

    OPENING = "opening"
    NEEDS_DRAFT = "needs_draft"
    DRAFTING = "drafting"
    READY = "ready"
    VERIFYING = "verifying"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What fixes a session's output, and what was asked of speculation."""

    session_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    speculation: SpeculationParams
    committed: tuple[int, ...] = ()  # of a resumed answer
    lease_epoch: int = 0  # the last one known of a resumed answer
    request_id: str = ""
    tenant: str = ""
    choice: int = 0

    def opening(
        self,
        lease: Lease,
        side: Side,
        tokens: Sequence[int],
        *,
        router_id: str,
        drafter: str,
        numerics_class: str,
        trace: Trace,
    ) -> SessionOpen:
        """The message that opens the session, with the tokens it has, under a lease."""
        return SessionOpen(
            session_id=self.session_id,
            lease_epoch=lease.epoch,
            router_id=router_id,
            tokens=tuple(tokens),
            prompt_len=len(self.prompt),
            sampling=self.sampling,
            choice=self.choice,
            tenant=self.tenant,
            request_id=self.request_id,
            drafter=drafter if side is Side.DRAFT else "",
            numerics_class=numerics_class if side is Side.TARGET else "",
            trace=trace,
        )


@dataclass(frozen=True, slots=True)
class AskDraft:
    """Send a task to a draft worker; its answer is awaited until ``deadline``."""

    worker: str
    task: DraftTask
    deadline: float


@dataclass(frozen=True, slots=True)
class Answered:
    """A draft worker answered the question it was asked last, ``took_s`` seconds after; a round may have waited."""

    worker: str
    took_s: float
    waited: bool


@dataclass(frozen=True, slots=True)
class AskVerify:
    """Send a task to a target."""

    worker: str
    task: VerifyTask


@dataclass(frozen=True, slots=True)
class Reopen:
    """The worker does not hold the session as it should: drop that side and open it, there or elsewhere."""

    side: Side
    worker: str


@dataclass(frozen=True, slots=True)
class Commit:
    """What one round committed, with what it cost: seconds waited, microseconds on the network."""

    index: int  # within the output, of the first token
    verdict: Verdict
    proposal: Proposal
    round_id: int
    missed: bool  # a draft was asked for and did not come in time
    asked: int  # draft tokens asked for and waited for
    lease_epoch: int
    draft_s: float
    verify_s: float
    network_us: int

    @property
    def drafter(self) -> str:
        """Who drafted what was verified."""
        return self.verdict.drafter or self.proposal.drafter

    @property
    def proposer_model_id(self) -> str:
        """The model accepted tokens are attributed to."""
        return self.verdict.drafter or self.proposal.proposer_model_id

    @property
    def confidence(self) -> tuple[float, ...]:
        """What the draft worker's drafter thought of its tokens."""
        return () if self.verdict.drafter else self.proposal.confidence

    @property
    def drafted(self) -> int:
        """Draft tokens proposed, by the draft worker and by the verifier itself."""
        return len(self.proposal.tokens) + (self.verdict.verify_len if self.verdict.drafter else 0)


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is whole."""

    finish: Finish


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer cannot go on."""

    error: PacelineError


Action = AskDraft | Answered | AskVerify | Reopen | Commit | Finished | Failed


@dataclass(slots=True)
class Round:
    """The round under way. Moments are in the caller's clock, seconds."""

    round_id: int
    began: float
    trace: Trace = NO_TRACE
    ready: float = 0.0
    sent: float = 0.0
    proposal: Proposal = EMPTY_PROPOSAL
    missed: bool = False
    asked: int = 0
    network_us: int = 0
