"""The engine seam: a step is a pure plan, run as one ragged forward pass for many sessions at once.

An engine owns weights and KV state and nothing else. It does not know about rounds, drafts or stops; a verifier and
a model drafter drive it with the same plans. ``step`` blocks and always runs in the thread that loaded the engine
(see runtime.compute), as does ``read_features``; ``reserve``, ``admit``, ``publish``, ``free`` and ``locate_features``
are bookkeeping: they compute nothing, and may be called from another thread meanwhile; the first four for sessions that
are not in the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from paceline.speculation.messages import Draft, SparseDistribution, TokenLogprobs
from paceline.speculation.params import SamplingParams
from paceline.speculation.shaping import RowShaping


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows of one session in a step.

    Tokens are written at positions ``start … start + len(tokens) - 1``; everything the engine held at or after
    ``start`` is forgotten, which is how a rejected draft is rolled back. The last ``samples`` rows are sampled: row r
    yields the token after it, drawn with the noise of output position ``position(r) + 1 - prompt_len``. The first
    ``len(scored)`` rows yield the log probabilities of the tokens that are known to follow them.
    """

    session_id: str
    start: int
    tokens: tuple[int, ...]
    samples: int  # 0 <= samples <= len(tokens)
    sampling: SamplingParams
    prompt_len: int
    choice: int = 0
    shaping: tuple[RowShaping, ...] = ()  # of each sampled row, or of none
    logprobs: int | None = None  # likeliest tokens to report with each sampled one; None reports nothing
    scored: tuple[int, ...] = ()  # of the prompt, the tokens that follow the first rows
    scored_likeliest: int = 0  # likeliest tokens to report with each of them
    drafts: tuple[Draft, ...] = ()  # what the first of the sampled rows are to judge, one each; see ``drawing.draw``
    proposes: bool = False  # the sampled rows draw drafts for rejection mode
    hidden: bool = False  # whether its rows' hidden states are to be returned, as the plan says which

    def __post_init__(self) -> None:
        assert self.start >= 0, self
        assert self.tokens, self
        assert 0 <= self.samples <= len(self.tokens) - len(self.scored), self
        assert len(self.shaping) in (0, self.samples), self
        assert not self.drafts or len(self.drafts) < self.samples, self

    @property
    def end(self) -> int:
        """Length of the session's KV state after the step."""
        return self.start + len(self.tokens)

    @property
    def logit_rows(self) -> list[int]:
        """The rows whose logits are wanted, by their place in ``tokens``: the scored ones, then the sampled ones."""
        return [*range(len(self.scored)), *range(len(self.tokens) - self.samples, len(self.tokens))]

    @property
    def first_noise_position(self) -> int:
        """Output position (0 is the first generated token) of the first sampled token."""
        return self.end - self.samples + 1 - self.prompt_len


@dataclass(frozen=True, slots=True)
class Wanted:
    """Hidden states to be returned with a step, of the slices that say so. Layers count as in ``taps``."""

    layers: tuple[int, ...]  # ascending
    last: bool = False  # also those after the final norm


@dataclass(frozen=True, slots=True)
class Hidden:
    """Hidden states of one slice's rows, in the model's dtype."""

    layers: Tensor  # [rows, len(wanted.layers) * hidden_size], side by side in the order asked for
    last: Tensor | None = None  # [rows, hidden_size], after the final norm


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass. A session appears at most once."""

    step_id: int
    slices: tuple[Slice, ...]
    wanted: Wanted | None = None  # of the slices with ``hidden``

    def __post_init__(self) -> None:
        assert (self.wanted is not None) == any(piece.hidden for piece in self.slices), self

    @property
    def rows(self) -> int:
        return sum(len(piece.tokens) for piece in self.slices)


@dataclass(frozen=True, slots=True)
class Scores:
    """Log probabilities of one slice: of its scored tokens, and of the sampled ones if they were asked for."""

    prompt: tuple[TokenLogprobs, ...] = ()
    samples: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class SliceResult:
    """One slice's part in a step's result."""

    samples: tuple[int, ...]
    scores: Scores = Scores()
    distributions: tuple[SparseDistribution, ...] = ()  # what its drafts were drawn from, if it proposes
    relaxed: tuple[bool, ...] = ()  # which samples are drafts kept in place of the target's own; () for none
    hidden: Hidden | None = None  # if it asked for them


@dataclass(frozen=True, slots=True)
class StepResult:
    """Sampled tokens, one tuple per slice of the plan, ``slice.samples`` long; and the step's duration.

    ``sampling.NOTHING`` stands where the options leave no token. ``scores``, ``distributions``, ``relaxed`` and
    ``hidden`` have one entry per slice, or none at all if there is nothing to say in them.
    """

    samples: tuple[tuple[int, ...], ...]
    duration_s: float
    scores: tuple[Scores, ...] = ()
    distributions: tuple[tuple[SparseDistribution, ...], ...] = ()
    relaxed: tuple[tuple[bool, ...], ...] = ()
    hidden: tuple[Hidden | None, ...] = ()

    def by_slice(self) -> list[SliceResult]:
        """The same, slice by slice."""
        count = len(self.samples)
        columns = (
            self.samples,
            self.scores or (Scores(),) * count,
            self.distributions or ((),) * count,
            self.relaxed or ((),) * count,
            self.hidden or (None,) * count,
        )
        return [SliceResult(*each) for each in zip(*columns, strict=True)]


@dataclass(frozen=True, slots=True)
class KvRequest:
    """What a session asks of the KV state when it is opened."""

    session_id: str
    tokens: Sequence[int]  # prompt and committed
    max_len: int  # positions it may grow to
    tenant: str = ""  # the authenticated one; pages are shared within a tenant
    kept: int = 0  # leading positions of what the session holds already that are these tokens
    share: bool = True  # whether pages other sessions computed will do; not for one that asks for the prompt's logits
    in_step: bool = False  # it is in the step under way, and what it holds must stay as it is

    def __post_init__(self) -> None:
        assert 0 <= self.kept < len(self.tokens) <= self.max_len, (self.kept, len(self.tokens), self.max_len)


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """Where the context features of consecutive positions of a session lie."""

    projector: str  # its fingerprint
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a model is, and what fixes the bits of its logits."""

    model_id: str
    fingerprint: str  # SHA-256 over weights and configuration
    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    numerics: dict[str, str] = field(default_factory=dict)  # facts behind the numerics class
    numerics_class: str = ""  # hash over them
    kv_tokens: int = 0  # KV positions the engine can hold
    row_tile: int = 1  # rows a step is padded to
    layers: int = 0  # decoder layers
    hidden_size: int = 0  # width of their outputs
    features: dict[str, int] = field(default_factory=dict)  # projector's fingerprint -> bytes of one position's
    feature_dtype: str = "bfloat16"  # of their numbers


class Engine(Protocol):
    """A model that runs steps."""

    @property
    def info(self) -> EngineInfo: ...

    def reserve(self, session_id: str, max_len: int) -> bool:
        """Set aside KV space for a session of up to ``max_len`` positions; False if it does not fit now.

        Reserving again for a held session keeps its state and grows the reservation if need be.
        """
        ...

    def admit(self, request: KvRequest) -> int | None:
        """Reserve for a session that is opened, on pages with the same tokens if others published some.

        Returns:
            Leading positions that need not be computed: at most len(tokens) - 1. None if the session does not fit now,
            or if it is in a step and its pages would have to change; then nothing changed.
        """
        ...

    def publish(self, session_id: str, tokens: Sequence[int], length: int) -> None:
        """Let sessions to come share the first ``length`` positions of an admitted session, which hold those tokens.

        They are committed: the session may not write there again, unless it is admitted anew.
        """
        ...

    def free(self, session_id: str, *, keep: bool = True) -> None:
        """Give a session's KV space back. Unknown sessions are ignored.

        What it published stays there for others until somebody needs the room; without ``keep`` it is forgotten.
        """
        ...

    def step(self, plan: StepPlan) -> StepResult:
        """Run one forward pass and sample. Every session of the plan must be reserved.

        ``slice.start`` may not exceed what the engine holds of the session.
        """
        ...

    def locate_features(self, session_id: str, projector: str, start: int, end: int) -> FeatureRows:
        """Where the features of positions start … end - 1 of a reserved session lie, or will once a step wrote them.

        Good until the session's pages change hands, which no read that is handed to the engine's thread now will see:
        what writes to the pages of another session is handed over later.
        """
        ...

    def read_features(self, rows: Sequence[FeatureRows]) -> list[bytes]:
        """The features themselves: rows back to back, in the engine's dtype, little-endian."""
        ...

    def cost_curve(self) -> tuple[tuple[int, float], ...]:
        """Measured (rows, seconds) of a step, in ascending rows."""
        ...
