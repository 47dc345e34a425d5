"""What an answer is made of. All frozen: an answer that was received doesn't change."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class TokenSource(Enum):
    """How a committed token came to be. Every token is exactly one of these."""

    ACCEPTED = "accepted"
    """A draft token that the target agreed with."""
    CORRECTED = "corrected"
    """The target's own token at the first disagreement."""
    BONUS = "bonus"
    """The target's own token after a fully accepted block."""
    TARGET_ONLY = "target_only"
    """The target's token of a round that carried no draft."""
    UNKNOWN = "unknown"
    """A source this client has no name for: the server is newer."""


class FinishReason(Enum):
    """Why generation ended."""

    STOP = "stop"
    """An end-of-sequence token, a stop token or a stop string."""
    LENGTH = "length"
    """``max_tokens`` or the model's context length was reached."""
    UNKNOWN = "unknown"
    """A reason this client has no name for: the server is newer."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The target's log probabilities at one position, before temperature and options changed them."""

    logprob: float
    """Of the token itself."""
    rank: int
    """Its place in the order of likelihood; 1 is the likeliest."""
    top_ids: tuple[int, ...] = ()
    """The likeliest tokens, as many as were asked for, likeliest first."""
    top_logprobs: tuple[float, ...] = ()
    """Their log probabilities."""


@dataclass(frozen=True, slots=True)
class Token:
    """One committed token and where it came from."""

    id: int
    """Token id in the target's vocabulary."""
    index: int
    """Position within the output; 0 is the first generated token."""
    source: TokenSource
    """How it came to be."""
    proposer_model_id: str | None
    """The model whose draft it was; None unless ``source`` is accepted."""
    verifier_model_id: str
    """The target that committed it."""
    round_id: int
    """The round that committed it; grows within a lease."""
    drafter: str
    """The drafter of that round; empty if nothing was drafted."""
    logprobs: TokenLogprobs | None = None
    """If ``logprobs`` was asked for."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one round committed."""

    index: int
    """Position within the output of the first token."""
    tokens: tuple[Token, ...]
    """The tokens, in order."""
    text: str
    """Text that became final with them; may be empty while a character or a stop string is incomplete."""
    round_id: int
    """The round; grows within a lease."""
    drafter: str
    """The drafter of the round; empty if nothing was drafted."""
    drafted: int
    """Draft tokens proposed."""
    verified: int
    """Draft tokens sent to verification."""
    accepted: int
    """Draft tokens the target agreed with."""
    lossy: bool = False
    """True if ``relaxed_acceptance`` accepted a draft token that the target alone would not have written."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt's tokens from the second on, with the first tokens, if ``prompt_logprobs`` was asked for."""
    confidence: tuple[float, ...] = ()
    """How likely the drafter took each draft token to be accepted, if those before it are; empty if it did not say."""


@dataclass(frozen=True, slots=True)
class Started:
    """The answer has a place to be generated."""

    request_id: str
    """Names the answer in traces and in the audit log."""
    session_id: str
    """The sequence on its target verifier."""
    model: str
    """The target model."""
    fingerprint: str
    """SHA-256 over the target's weights and configuration."""
    numerics_class: str
    """Hash of everything that fixes the bits of the target's logits."""
    prompt_token_ids: tuple[int, ...]
    """The prompt as the target sees it."""
    seed: int
    """Fixes the sampling noise; drawn by the server if the request had none."""
    lease_epoch: int
    """Grows each time the session is opened on a worker."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Why generation ended, and on what."""

    reason: FinishReason
    stop_token_id: int | None = None
    """The stop token that ended it, if one did."""
    stop_string: str | None = None
    """The stop string that ended it, if one did; not part of the text."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the whole answer, resumed or not."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class SpeculationMetrics:
    """How speculation went over an answer.

    Of a resumed answer, the counts cover all its streams; the times and ``missed_drafts`` only the last one, since
    the numbers of a lost router are lost with it.
    """

    rounds: int = 0
    verify_rounds: int = 0
    """Rounds with verify length >= 1."""
    drafted_tokens: int = 0
    verified_tokens: int = 0
    accepted_tokens: int = 0
    corrected_tokens: int = 0
    bonus_tokens: int = 0
    target_only_tokens: int = 0
    per_round_verified: tuple[int, ...] = ()
    """Draft tokens verified, per verify round."""
    per_round_accepted: tuple[int, ...] = ()
    """Draft tokens accepted, per verify round."""
    missed_drafts: int = 0
    """Draft answers that came too late or never."""
    draft_wait_us: int = 0
    """Microseconds spent waiting for draft workers."""
    verify_wait_us: int = 0
    """Microseconds spent waiting for the target verifier."""
    router_us: int = 0
    """Microseconds the router itself took, waiting excluded."""
    network_us: int = 0
    """Microseconds of round trips less the workers' own residence time."""

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / verified draft tokens; None if none were verified."""
        return self.accepted_tokens / self.verified_tokens if self.verified_tokens else None

    @property
    def accepted_length(self) -> float | None:
        """τ: committed tokens per verify round, the corrected or bonus token included; None without such rounds."""
        committed = self.accepted_tokens + self.corrected_tokens + self.bonus_tokens
        return committed / self.verify_rounds if self.verify_rounds else None

    @property
    def committed_per_round(self) -> float | None:
        """Committed tokens per target step, over all rounds; None without rounds."""
        committed = self.accepted_tokens + self.corrected_tokens + self.bonus_tokens + self.target_only_tokens
        return committed / self.rounds if self.rounds else None


@dataclass(frozen=True, slots=True)
class Partial:
    """What had arrived of an answer."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    started: Started | None = None
    """None if the server had not begun."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of ``tokens``."""
        return tuple(token.id for token in self.tokens)


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer."""

    text: str
    tokens: tuple[Token, ...]
    started: Started
    finish: Finish
    usage: Usage
    speculation: SpeculationMetrics
    resumes: int = 0
    """How often the answer went on after its stream was lost."""
    stall_s: float = 0.0
    """Seconds without a stream that made progress, from each break to the next token."""
    class_changed: bool = False
    """True if it went on in another numerics class than it began in: near-ties may have fallen otherwise."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt's tokens from the second on, if ``prompt_logprobs`` was asked for."""
    lossy: bool = False
    """True if ``relaxed_acceptance`` changed a token."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of ``tokens``."""
        return tuple(token.id for token in self.tokens)


@dataclass(frozen=True, slots=True)
class Model:
    """A model the server offers."""

    id: str
    fingerprint: str
    """SHA-256 over weights and configuration."""
    numerics_class: str
    """Hash of everything that fixes the bits of its logits."""
    context_length: int
    """Tokens of prompt and output together, at most."""
    drafters: tuple[str, ...]
    """Names accepted by ``Speculation(drafter=...)``."""
    targets: int
    """Target verifiers up just now."""
    drafts: int
    """Draft workers up just now."""
    cost_curve: tuple[tuple[int, float], ...] = ()
    """Seconds of a target's step by the tokens in it, as measured at its start-up."""
