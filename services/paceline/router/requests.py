"""The nouns between the ingress (gRPC, HTTP) and the router: a request, and the events of its answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from paceline.speculation.messages import NO_TRACE, Finish, RoundStats, TokenLogprobs, TokenSource, Trace
from paceline.speculation.params import Grammar, SpeculationParams, VerificationMode

SEED_BITS = 53  # what a JSON number holds exactly, so that a reported seed can be sent back by anybody
MAX_CHOICES = 128  # answers to one request
BAD_WORD_FORMS = 2  # token sequences a word becomes: with and without a space before it


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """Sampling options as a caller gave them; None leaves a value to the server."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool | None = None
    verification_mode: VerificationMode | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    bad_texts: tuple[str, ...] = ()  # bad words that are yet to be tokenized
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    relaxed_acceptance: float | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a lost answer stood."""

    prompt_tokens: tuple[int, ...]
    committed: tuple[int, ...]
    seed: int
    numerics_class: str
    lease_epoch: int
    session_id: str


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted. Exactly one of text, messages and tokens is set."""

    request_id: str = ""
    model: str = ""
    text: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None  # (role, content)
    tokens: tuple[int, ...] | None = None
    sampling: SamplingRequest = SamplingRequest()
    speculation: SpeculationParams = field(default_factory=SpeculationParams)
    choice: int = 0  # which of several answers to the same request and seed
    resume: Resume | None = None
    tenant: str = ""
    timeout_s: float | None = None
    trace: Trace = NO_TRACE


@dataclass(frozen=True, slots=True)
class Started:
    """The answer has a place; everything a resume needs.

    It comes first, and once more whenever the answer had to move to another numerics class under way, with
    ``class_changed``: what follows is the new class's text, and a resume must name that class.
    """

    request_id: str
    session_id: str
    model: str
    fingerprint: str
    numerics_class: str
    prompt_tokens: tuple[int, ...]
    seed: int
    lease_epoch: int
    class_changed: bool = False  # goes on in another numerics class than it began in


@dataclass(frozen=True, slots=True)
class Committed:
    """What one round committed."""

    index: int  # within the output, of the first token
    tokens: tuple[int, ...]
    sources: tuple[TokenSource, ...]
    text: str
    proposer_model_id: str
    verifier_model_id: str
    drafter: str
    round_id: int
    drafted: int
    verified: int
    accepted: int
    lease_epoch: int
    logprobs: tuple[TokenLogprobs, ...] = ()  # one for each token, if asked for
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of the prompt from its second token on, with the first output
    lossy: bool = False  # relaxed acceptance changed a token
    confidence: tuple[float, ...] = ()  # estimated conditional acceptance of each draft token, if there is one


@dataclass(frozen=True, slots=True)
class Waits:
    """Where an answer's time went, in microseconds: the router's own share, the network, and waiting for workers."""

    draft_us: int = 0
    verify_us: int = 0
    router_us: int = 0
    network_us: int = 0


@dataclass(frozen=True, slots=True)
class Completed:
    """The answer is whole."""

    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    stats: RoundStats = field(default_factory=RoundStats)
    waits: Waits = Waits()


Event = Started | Committed | Completed


@dataclass(frozen=True, slots=True)
class Model:
    """A model served, and by how many."""

    model_id: str
    fingerprint: str
    numerics_class: str
    context_length: int
    drafters: tuple[str, ...]
    targets: int
    drafts: int
    cost_curve: tuple[tuple[int, float], ...] = ()  # (rows of a step, seconds)
