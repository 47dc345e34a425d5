"""A language model that is a table: an engine for tests and simulations.

The logits after a token are a pure function of (seed, the last ``order`` tokens), made by hashing; they go through the
same sampler as a real model's. A fake with ``quality`` below 1 is a draft model for the fake with the same seed: its
logits are blended with noise of its own, so that it agrees with the other less often the lower the quality is.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from paceline.engine import grammar
from paceline.engine.fake_features import HIDDEN_SIZE, LAYERS, FakeStates
from paceline.engine.fake_tokenizer import IM_END, IM_START, VOCAB_SIZE, fake_tokenizer_files
from paceline.engine.interface import EngineInfo, FeatureRows, KvRequest, StepPlan, StepResult
from paceline.engine.outcome import draw
from paceline.engine.pages import PAGE, BlockTable, context_exceeded
from paceline.engine.prefix import salt_of
from paceline.engine.projection import Projector
from paceline.engine.taps import require_layers
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import SAMPLER_VERSION

__all__ = ["NAME", "FakeEngine", "FakeOptions", "fake_tokenizer_files", "parse_options"]

NAME = "fake"
_CONTEXT_LENGTH = 32768
_TEXT = torch.tensor([byte == 32 or 97 <= byte <= 122 for byte in range(VOCAB_SIZE)])  # space and a–z
_CACHED_CONTEXTS = 65536
_NEVER = -1e4  # of no weight at any temperature, but finite: a grammar may leave nothing but the end
_UNWRITTEN = -1


@dataclass(frozen=True, slots=True)
class FakeOptions:
    """What a fake model is like. In a model name: ``fake:quality=0.8,step_ms=2``."""

    seed: int = 0  # which table; a draft model has its target's
    order: int = 2  # tokens the next one depends on
    vocab_size: int = VOCAB_SIZE  # 258 fits the fake tokenizer
    quality: float = 1.0  # 0 … 1; 1 is the table itself, less agrees with it less often
    spread: float = 3.0  # standard deviation of logits: the higher, the surer the model
    eos: float = 0.01  # rough probability of ending the answer at any token
    step_ms: float = 0.0  # duration of a step …
    row_ms: float = 0.0  # … and what each row adds

    def __post_init__(self) -> None:
        limits = {"order": 1, "vocab_size": 2, "quality": 0, "spread": 0, "eos": 0, "step_ms": 0, "row_ms": 0}
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise InvalidRequest(f"fake.{name}", expected=f"{least} or more", got=getattr(self, name))
        for name in ("quality", "eos"):
            if getattr(self, name) > 1:
                raise InvalidRequest(f"fake.{name}", expected="at most 1", got=getattr(self, name))

    @property
    def eos_token_id(self) -> int:
        return min(IM_END, self.vocab_size - 1)


def parse_options(name: str) -> FakeOptions:
    """Options from a model name such as ``fake`` or ``fake:quality=0.8,step_ms=2``.

    Raises InvalidRequest naming the option that is unknown or malformed.
    """
    kinds: dict[str, Callable[[str], int | float]] = {
        field.name: int if field.type == "int" else float for field in fields(FakeOptions)
    }
    values: dict[str, int | float] = {}
    head, _, tail = name.partition(":")
    if head != NAME:
        raise InvalidRequest("model", expected=f"{NAME}[:option=value,…]", got=name)
    for pair in filter(None, tail.split(",")):
        key, _, text = pair.partition("=")
        if key not in kinds:
            raise InvalidRequest("model", expected=f"fake options among {', '.join(kinds)}", got=key)
        try:
            values[key] = kinds[key](text)
        except ValueError as error:
            raise InvalidRequest(f"fake.{key}", expected="a number", got=text) from error
    return FakeOptions(**values)  # type: ignore[arg-type]  # each value has its field's type


class FakeEngine:
    """Engine over a table. It checks plans like a real one, and its KV state is the tokens, on pages like a real one's.

    So a page that is shared wrongly shows in the logits.
    """

    def __init__(
        self,
        options: FakeOptions | None = None,
        *,
        kv_tokens: int = 65536,
        model_id: str = NAME,
        sleep: Callable[[float], None] | None = time.sleep,
        duration: Callable[[StepPlan], float] | None = None,
        projectors: Sequence[Projector] = (),
    ) -> None:
        """
        Args:
            kv_tokens: positions it can hold over all sessions.
            sleep: called with a step's duration; None returns at once, for virtual time.
            duration: seconds a plan takes; by default ``step_ms`` + ``row_ms`` per row.
            projectors: of the context features it keeps.
        """
        self.options = options or FakeOptions()
        self._table = BlockTable(kv_tokens)
        self._slots = [_UNWRITTEN] * ((self._table.total + 1) * PAGE)  # the token at each position of each page
        self._sleep = sleep
        self._duration = duration or self._default_duration
        self._logits = functools.lru_cache(_CACHED_CONTEXTS)(self._compute_logits)
        self.states = FakeStates(self._digest, self.options.order, projectors)
        kept = {field.name: str(getattr(self.options, field.name)) for field in fields(FakeOptions)}
        facts = {name: value for name, value in kept.items() if not name.endswith("_ms")}
        facts |= {"engine": NAME, "torch": torch.__version__, "sampler": SAMPLER_VERSION, "grammar": grammar.VERSION}
        identity = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()
        self._info = EngineInfo(
            model_id=model_id,
            fingerprint=identity,
            vocab_size=self.options.vocab_size,
            context_length=_CONTEXT_LENGTH,
            eos_token_ids=(self.options.eos_token_id,),
            numerics=facts,
            numerics_class=identity[:16],
            kv_tokens=self._table.tokens,
            layers=LAYERS,
            hidden_size=HIDDEN_SIZE,
            features=self.states.row_bytes,
        )

    @property
    def info(self) -> EngineInfo:
        """See Engine."""
        return self._info

    def reserve(self, session_id: str, max_len: int) -> bool:
        """See Engine. Raises InvalidRequest beyond the context length: waiting would not help."""
        if max_len > _CONTEXT_LENGTH:
            raise context_exceeded(max_len, _CONTEXT_LENGTH)
        fresh = self._table.reserve(session_id, max_len)
        self._clear(fresh or [])
        return fresh is not None

    def admit(self, request: KvRequest) -> int | None:
        """See Engine. Raises InvalidRequest as ``reserve`` does."""
        if request.max_len > _CONTEXT_LENGTH:
            raise context_exceeded(request.max_len, _CONTEXT_LENGTH)
        admission = self._table.admit(request, salt_of(self._info.numerics_class, request.tenant, page=PAGE))
        if admission is None:
            return None
        self._clear(admission.fresh)
        held, wanted = self.held(request.session_id)[: admission.reused], request.tokens[: admission.reused]
        assert held == tuple(wanted), f"{request.session_id} starts on {held}, its tokens are {wanted}"
        return admission.reused

    def publish(self, session_id: str, tokens: Sequence[int], length: int) -> None:
        """See Engine."""
        if self._table.publish(session_id, tokens, length):
            held = self.held(session_id)[:length]
            assert held == tuple(tokens[:length]), f"{session_id} holds {held}, publishes {tokens[:length]}"

    def free(self, session_id: str, *, keep: bool = True) -> None:
        """See Engine."""
        self._table.free(session_id, keep=keep)

    def held(self, session_id: str) -> tuple[int, ...]:
        """Tokens the engine holds of a session; none of one it does not know."""
        if session_id not in self._table:
            return ()
        holding = self._table.holding(session_id)
        return self._read(holding.pages, 0, holding.length)

    def check_integrity(self) -> None:
        """Assert that pages add up."""
        self._table.check_integrity()

    def step(self, plan: StepPlan) -> StepResult:
        """See Engine. Raises InvalidRequest for layers it does not have."""
        if plan.wanted is not None:
            require_layers(plan.wanted.layers, LAYERS, "layers")
        logits = self.forward(plan)
        drawn = draw(plan, logits)
        if plan.wanted is not None:
            parts = [self.states.hidden(piece, plan.wanted, self.held(piece.session_id)) for piece in plan.slices]
            drawn = replace(drawn, hidden=tuple(parts))
        duration_s = self._duration(plan)
        if self._sleep is not None and duration_s > 0:
            self._sleep(duration_s)
        return replace(drawn, duration_s=duration_s)

    def forward(self, plan: StepPlan) -> Tensor:
        """Take a plan's tokens in; float32 logits [R, vocab] of its slices' ``logit_rows``."""
        self._table.begin(plan)
        rows: list[Tensor] = []
        for piece in plan.slices:
            assert all(0 <= token < self.options.vocab_size for token in piece.tokens), piece.tokens
            pages = self._table.holding(piece.session_id).pages
            for position, token in enumerate(piece.tokens, piece.start):
                slot = pages[position // PAGE] * PAGE + position % PAGE
                self._slots[slot] = token
                if self._info.features:
                    self.states.write(slot, self._read(pages, max(0, position + 1 - self.options.order), position + 1))
            ends = [piece.start + row + 1 for row in piece.logit_rows]
            rows += [self.next_logits(self._read(pages, max(0, end - self.options.order), end)) for end in ends]
        self._table.commit(plan)
        return torch.stack(rows) if rows else torch.empty(0, self.options.vocab_size)

    def next_logits(self, tokens: list[int] | tuple[int, ...]) -> Tensor:
        """Logits of the token after ``tokens``, float32 [vocab]: the model itself."""
        return self._logits(tuple(tokens[-self.options.order :]))

    def locate_features(self, session_id: str, projector: str, start: int, end: int) -> FeatureRows:
        """See Engine."""
        assert projector in self._info.features, projector
        return FeatureRows(projector, self._table.slots(session_id, start, end))

    def read_features(self, rows: Sequence[FeatureRows]) -> list[bytes]:
        """See Engine."""
        return [self.states.read(each) for each in rows]

    def cost_curve(self) -> tuple[tuple[int, float], ...]:
        """See Engine: what ``step_ms`` and ``row_ms`` say."""
        return tuple((rows, (self.options.step_ms + self.options.row_ms * rows) / 1e3) for rows in (1, 16, 32, 64, 128))

    def _read(self, pages: Sequence[int], start: int, end: int) -> tuple[int, ...]:
        """The tokens at positions start … end - 1 of a page table; all of them must have been written."""
        tokens = tuple(self._slots[pages[at // PAGE] * PAGE + at % PAGE] for at in range(start, end))
        assert _UNWRITTEN not in tokens, (pages, start, end, tokens)
        return tokens

    def _clear(self, pages: Sequence[int]) -> None:
        for page in pages:
            self._slots[page * PAGE : (page + 1) * PAGE] = [_UNWRITTEN] * PAGE

    def _default_duration(self, plan: StepPlan) -> float:
        return (self.options.step_ms + self.options.row_ms * plan.rows) / 1e3

    def _compute_logits(self, context: tuple[int, ...]) -> Tensor:
        options = self.options
        logits = self._noise("table", context)
        if options.quality < 1:
            own = self._noise("draft", context)
            logits = options.quality * logits + (1 - options.quality) * own
        logits = logits * options.spread
        if options.vocab_size == VOCAB_SIZE:  # readable, so that stop strings have something to match
            logits = torch.where(_TEXT, logits, logits - 4 * options.spread - 8)
            logits[IM_START] = -torch.inf
        eos = options.eos_token_id
        if options.eos <= 0:
            logits[eos] = _NEVER
        elif options.eos >= 1:
            logits[eos] = logits.amax() + 50
        else:
            logits[eos] = self._eos_logit(context, logits)
        return logits

    def _eos_logit(self, context: tuple[int, ...], logits: Tensor) -> Tensor:
        """After a share ``eos`` of contexts the end is nearly certain, after others it cannot come: greedy answers end
        as often as sampled ones, and a draft model knows as well as its target."""
        draw = int.from_bytes(self._digest("eos", context)[:8], "big") / 2**64
        return logits.amax() + 50 if draw < self.options.eos else logits.new_tensor(_NEVER)

    def _noise(self, stream: str, context: tuple[int, ...]) -> Tensor:
        """Standard normal float32 [vocab], a function of (seed, stream, context)."""
        seed = int.from_bytes(self._digest(stream, context)[:8], "big") >> 1
        return torch.randn(self.options.vocab_size, generator=torch.Generator().manual_seed(seed))

    def _digest(self, stream: str, context: tuple[int, ...]) -> bytes:
        return hashlib.sha256(repr((self.options.seed, stream, context)).encode()).digest()
