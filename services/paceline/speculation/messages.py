"""The nouns of a round. ``paceline.runtime.wire`` translates them to and from protobuf.

A round is draft → verify → commit for one session:

    router ──DraftTask──▶ draft worker ──DraftResult(Proposal | Resync)──▶ router
    router ──VerifyTask─▶ target       ──VerifyResult(Verdict | Resync)──▶ router
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from paceline.speculation.features import Feed
from paceline.speculation.params import SamplingParams

PROTOCOL_VERSION = "1"
SAMPLER_VERSION = "2"  # here rather than beside the sampler: who negotiates it needn't load torch
MAX_SUPPORT = 64  # tokens of a draft distribution


class TokenSource(IntEnum):
    """How a committed token came to be (values as in the proto). Each is exactly one of these."""

    ACCEPTED = 1
    CORRECTED = 2
    BONUS = 3
    TARGET_ONLY = 4


class FinishReason(IntEnum):
    """Why generation ended (values as in the proto)."""

    STOP = 1
    LENGTH = 2


class ResyncReason(IntEnum):
    """Why a worker could not take a round (values as in the proto)."""

    UNKNOWN_SESSION = 1
    STALE_LEASE = 2
    OTHER_INCARNATION = 3
    PREFIX_MISMATCH = 4
    OLD_ROUND = 5
    DEAD_END = 6  # the options leave no token to go on with, on any worker


@dataclass(frozen=True, slots=True)
class Trace:
    """W3C trace context of the span a worker's span shall be a child of."""

    traceparent: str = ""
    tracestate: str = ""


NO_TRACE = Trace()


@dataclass(frozen=True, slots=True)
class Fence:
    """Identifies one round of one session and fences it against the past."""

    session_id: str
    incarnation: str  # the worker process the round is meant for
    lease_epoch: int  # grows each time the session is opened
    round_id: int  # grows each round within a lease
    base_len: int  # tokens, prompt included, the sender believes the session has
    prefix_digest: bytes  # PrefixDigest over those tokens


@dataclass(frozen=True, slots=True)
class Finish:
    """Why generation ended, and what ended it."""

    reason: FinishReason
    stop_token_id: int | None = None
    stop_string: str | None = None


@dataclass(frozen=True, slots=True)
class Resync:
    """The worker does not hold the session in the state the round assumes: open it again."""

    reason: ResyncReason
    known_len: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a worker's time went on one answer, in microseconds."""

    queue_us: int = 0
    step_us: int = 0
    residence_us: int = 0


@dataclass(frozen=True, slots=True)
class SessionOpen:
    """A session as a worker needs it to take it over at any point of its life."""

    session_id: str
    lease_epoch: int
    router_id: str
    tokens: tuple[int, ...]  # prompt and committed
    prompt_len: int
    sampling: SamplingParams
    choice: int = 0
    tenant: str = ""
    request_id: str = ""
    drafter: str = ""
    numerics_class: str = ""
    trace: Trace = NO_TRACE


@dataclass(frozen=True, slots=True)
class DraftTask:
    """Asks a draft worker for at most ``max_draft_tokens`` tokens after ``fence.base_len``."""

    fence: Fence
    appended: tuple[int, ...]  # committed tokens from append_from up to base_len
    append_from: int
    max_draft_tokens: int
    deadline_us: int = 0  # of no use after this long from arrival; 0 = no limit
    token_us: int = 0  # time in which a token is committed; 0 = not known
    row_us: int = 0  # what each token that is verified adds to a step
    trace: Trace = NO_TRACE


@dataclass(frozen=True, slots=True)
class SparseDistribution:
    """What a draft token was drawn from: probabilities (float32 values) of distinct tokens.

    It is the serialised form that is drawn from, so its sum is 1 by definition, whatever rounding made of it.
    """

    ids: tuple[int, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.probabilities) > 0, (len(self.ids), len(self.probabilities))


class Draft(NamedTuple):
    """A draft token for the target to judge, and what it was drawn from (rejection mode)."""

    token: int
    distribution: SparseDistribution | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The target's log probabilities at one position, before temperature and every option."""

    logprob: float  # of the token itself
    rank: int  # its place in the order of likelihood; 1 is the likeliest
    top_ids: tuple[int, ...] = ()  # likeliest first
    top_logprobs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.top_ids) == len(self.top_logprobs), self


@dataclass(frozen=True, slots=True)
class Proposal:
    """Draft tokens for the positions after the fence's base_len."""

    tokens: tuple[int, ...]
    drafter: str = ""
    proposer_model_id: str = ""
    confidence: tuple[float, ...] = ()  # estimated conditional acceptance, per token, or empty
    distributions: tuple[SparseDistribution, ...] = ()  # rejection mode: what each token was drawn from

    def __post_init__(self) -> None:
        assert not self.distributions or len(self.distributions) == len(self.tokens)
        assert not self.confidence or len(self.confidence) == len(self.tokens)


EMPTY_PROPOSAL = Proposal(())

GRAMMAR = "grammar"  # drafts what a grammar forces; it goes by this name as a proposer, too


@dataclass(frozen=True, slots=True)
class DraftResult:
    """A draft worker's answer to one task."""

    fence: Fence
    outcome: Proposal | Resync
    timing: Timing = Timing()


@dataclass(frozen=True, slots=True)
class VerifyTask:
    """Asks a target to verify a proposal (possibly empty) and commit at least one token."""

    fence: Fence
    proposal: Proposal = EMPTY_PROPOSAL
    trace: Trace = NO_TRACE
    feed: Feed | None = None  # where the session's context features go, if somebody needs them
    features_later: bool = False  # no draft is asked for after this round: until one is, they can wait


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one round committed.

    Invariant: sources reads ACCEPTED* then at most one of CORRECTED | BONUS | TARGET_ONLY, which is missing only
    when a stop or the length limit ended the answer inside the accepted run, or the options leave no token after it.
    """

    tokens: tuple[int, ...]
    sources: tuple[TokenSource, ...]
    verify_len: int  # draft tokens verified
    accepted: int  # of those, how many the target agreed with, whether or not a stop cut them off
    text: str = ""  # text that became final in this round
    finish: Finish | None = None
    verifier_model_id: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()  # one for each committed token, if asked for
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of the prompt from its second token on, with the first output
    lossy: bool = False  # relaxed acceptance committed a draft token that is not the target's own sample
    drafter: str = ""  # who drafted what was verified, if the verifier did it itself; empty: the proposal tells

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.sources), (self.tokens, self.sources)
        assert not self.logprobs or len(self.logprobs) == len(self.tokens), (len(self.logprobs), len(self.tokens))
        assert 0 <= self.accepted <= self.verify_len, (self.accepted, self.verify_len)
        assert all(source is TokenSource.ACCEPTED for source in self.sources[:-1]), self.sources


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """A target's answer to one task."""

    fence: Fence
    outcome: Verdict | Resync
    timing: Timing = Timing()


@dataclass(frozen=True, slots=True)
class StepReport:
    """The step a batch of answers rode in."""

    step_id: int = 0
    sessions: int = 0
    tokens: int = 0  # rows of the forward pass that carried a token
    duration_us: int = 0


@dataclass(slots=True)
class RoundStats:
    """Totals over one answer, in the words of DESIGN.md section 2. Only rounds whose verdict arrived count."""

    rounds: int = 0
    drafted: int = 0
    missed_drafts: int = 0
    per_round_verified: list[int] = field(default_factory=list)  # rounds with verify length >= 1
    per_round_accepted: list[int] = field(default_factory=list)  # parallel to per_round_verified
    by_source: dict[TokenSource, int] = field(default_factory=lambda: dict.fromkeys(TokenSource, 0))
    speculative_commits: int = 0  # tokens committed by rounds with verify length >= 1
    lossy: bool = False  # some round was, see Verdict

    def add(self, verdict: Verdict, drafted: int, missed: bool) -> None:
        """Count one round: ``drafted`` tokens were proposed, or the draft was asked for and ``missed``."""
        self.rounds += 1
        self.drafted += drafted
        self.missed_drafts += missed
        self.lossy |= verdict.lossy
        for source in verdict.sources:
            self.by_source[source] += 1
        if verdict.verify_len:
            self.per_round_verified.append(verdict.verify_len)
            self.per_round_accepted.append(verdict.accepted)
            self.speculative_commits += len(verdict.tokens)

    @property
    def committed(self) -> int:
        return sum(self.by_source.values())

    @property
    def verified(self) -> int:
        return sum(self.per_round_verified)

    @property
    def accepted(self) -> int:
        return sum(self.per_round_accepted)

    @property
    def tau(self) -> float | None:
        """Accepted length τ: committed tokens per round over rounds with verify length ≥ 1; None without any."""
        rounds = len(self.per_round_verified)
        return self.speculative_commits / rounds if rounds else None

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted over verified draft tokens; None when nothing was verified."""
        return self.accepted / self.verified if self.verified else None
