"""What the target's tests share: a model small enough to enumerate, plain decoding of it, and words for its tokens."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from paceline.engine.interface import EngineInfo, FeatureRows, KvRequest, Slice, StepPlan, StepResult
from paceline.engine.pages import PAGE, BlockTable
from paceline.engine.prefix import salt_of
from paceline.speculation.digest import PrefixDigest
from paceline.speculation.messages import (
    Fence,
    Proposal,
    SessionOpen,
    Trace,
    Verdict,
    VerifyResult,
    VerifyTask,
)
from paceline.speculation.params import SamplingParams
from paceline.speculation.sampling import Row, sample
from paceline.target.sessions import Limits
from paceline.target.verifier import Verifier

VOCAB = 12
EOS = 11
WORDS = ("a", "b", "ab", " c", "d", "", "é", "ba", ".", "bc", "cd", "<eos>")
STEP_S = 0.25  # what the scripted engine says a step takes


@cache
def next_token(tail: tuple[int, ...], params: SamplingParams, position: int, choice: int) -> int:
    """The model: logits are a function of the last three tokens, drawn by the real sampler."""
    seed = zlib.crc32(bytes(token % 256 for token in tail))
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2
    return int(sample(logits, [Row(params, position, choice)])[0])


@dataclass
class ScriptedEngine:
    """An engine that computes from the tokens it was fed, so that a wrong KV state shows in the samples."""

    kv_tokens: int = 4096
    context_length: int = 64
    failures: int = 0  # so many of the next steps break
    plans: list[StepPlan] = field(default_factory=list)
    features: dict[str, int] = field(default_factory=dict)  # a position's are its token, in so many bytes

    def __post_init__(self) -> None:
        self.table = BlockTable(self.kv_tokens)
        self._slots = [-1] * ((self.table.total + 1) * PAGE)
        self._ids: dict[str, None] = {}

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            model_id="scripted",
            fingerprint="f",
            vocab_size=VOCAB,
            context_length=self.context_length,
            eos_token_ids=(EOS,),
            numerics={"dtype": "none"},
            numerics_class="class-a",
            kv_tokens=self.table.tokens,
            features=self.features,
        )

    @property
    def held(self) -> dict[str, tuple[int, ...]]:
        """What it holds of each session."""
        return {name: self._read(name, self.table.holding(name).length) for name in self._ids}

    @property
    def reserved(self) -> dict[str, int]:
        return {name: self.table.holding(name).reserved for name in self._ids}

    def reserve(self, session_id: str, max_len: int) -> bool:
        raise AssertionError("the verifier admits")

    def admit(self, request: KvRequest) -> int | None:
        admission = self.table.admit(request, salt_of("class-a", request.tenant, page=PAGE))
        if admission is None:
            return None
        for page in admission.fresh:
            self._slots[page * PAGE : (page + 1) * PAGE] = [-1] * PAGE
        self._ids[request.session_id] = None
        assert self._read(request.session_id, admission.reused) == tuple(request.tokens[: admission.reused])
        return admission.reused

    def publish(self, session_id: str, tokens: Sequence[int], length: int) -> None:
        assert self._read(session_id, length) == tuple(tokens[:length])
        self.table.publish(session_id, tokens, length)

    def free(self, session_id: str, *, keep: bool = True) -> None:
        self._ids.pop(session_id, None)
        self.table.free(session_id, keep=keep)

    def locate_features(self, session_id: str, projector: str, start: int, end: int) -> FeatureRows:
        return FeatureRows(projector, self.table.slots(session_id, start, end))

    def read_features(self, rows: Sequence[FeatureRows]) -> list[bytes]:
        return [
            b"".join(self._slots[slot].to_bytes(self.features[each.projector], "little") for slot in each.slots)
            for each in rows
        ]

    def step(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        if self.failures:
            self.failures -= 1
            raise FloatingPointError("scripted failure")
        self.table.begin(plan)
        samples = tuple(self._run(piece) for piece in plan.slices)
        self.table.commit(plan)
        return StepResult(samples, STEP_S)

    def cost_curve(self) -> tuple[tuple[int, float], ...]:
        return ((1, 0.02), (16, 0.02))

    def _run(self, piece: Slice) -> tuple[int, ...]:
        pages = self.table.holding(piece.session_id).pages
        for at, token in enumerate(piece.tokens, piece.start):
            self._slots[pages[at // PAGE] * PAGE + at % PAGE] = token
        held = self._read(piece.session_id, piece.end)
        drawn = []
        for i in range(piece.samples):
            end = piece.end - piece.samples + 1 + i
            position = piece.first_noise_position + i
            drawn.append(next_token(held[max(0, end - 3) : end], piece.sampling, position, piece.choice))
        return tuple(drawn)

    def _read(self, session_id: str, length: int) -> tuple[int, ...]:
        pages = self.table.holding(session_id).pages
        return tuple(self._slots[pages[at // PAGE] * PAGE + at % PAGE] for at in range(length))


class Words:
    """A detokenizer that spells each token."""

    def feed(self, token: int) -> str:
        return WORDS[token]


def plain(opening: SessionOpen, context_length: int = 64) -> tuple[tuple[int, ...], str]:
    """The answer's tokens and text, decoded by the target alone, one token at a time, with stops found naively."""
    params, tokens = opening.sampling, list(opening.tokens[: opening.prompt_len])
    stop_tokens = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    text = ""
    while True:
        position = len(tokens) - opening.prompt_len
        tokens.append(next_token(tuple(tokens[-3:]), params, position, opening.choice))
        out = tuple(tokens[opening.prompt_len :])
        if out[-1] in stop_tokens:
            return out, text
        for character in WORDS[out[-1]]:
            text += character
            ended = [stop for stop in params.stop if text.endswith(stop)]
            if ended:
                return out, text.removesuffix(max(ended, key=len))
        if len(out) == params.max_tokens or len(tokens) == context_length:
            return out, text


def make_verifier(engine: ScriptedEngine | None = None, **limits: Any) -> tuple[Verifier, ScriptedEngine]:
    engine = engine or ScriptedEngine()
    return Verifier(engine, engine.info, limits=Limits(**limits), incarnation="inc-1", detokenizer=Words), engine


def opening(session_id: str = "s1", tokens: Sequence[int] = (1, 2, 3), **changes: Any) -> SessionOpen:
    """A session; ``committed`` are tokens after the prompt, and sampling fields may be given directly."""
    committed = tuple(changes.pop("committed", ()))
    names = ("temperature", "top_k", "seed", "max_tokens", "stop", "stop_token_ids", "ignore_eos")
    sampling = {"temperature": 0.0, "ignore_eos": True}
    sampling |= {name: changes.pop(name) for name in names if name in changes}
    values: dict[str, Any] = {
        "session_id": session_id,
        "lease_epoch": 1,
        "router_id": "r1",
        "tokens": (*tokens, *committed),
        "prompt_len": len(tokens),
        "sampling": SamplingParams(**sampling),  # type: ignore[arg-type]
        **changes,
    }
    return SessionOpen(**values)


def task(
    source: SessionOpen,
    committed: Sequence[int] = (),
    drafts: Sequence[int] = (),
    *,
    round_id: int = 1,
    incarnation: str = "inc-1",
) -> VerifyTask:
    """A round of a session after the tokens committed since it was opened."""
    tokens = (*source.tokens, *committed)
    fence = Fence(source.session_id, incarnation, source.lease_epoch, round_id, len(tokens), PrefixDigest(tokens).value)
    return VerifyTask(fence, Proposal(tuple(drafts), "scripted"), Trace(f"00-{round_id}"))


def run_step(verifier: Verifier, engine: ScriptedEngine, now: float = 0.0) -> list[VerifyResult]:
    """One step; the answers that came out of it."""
    plan = verifier.plan(now)
    assert plan is not None, "nothing waits"
    served = verifier.complete(plan, engine.step(plan), now + STEP_S)
    verifier.check_integrity()
    return [each.result for each in served if each.result is not None]


def verdict_of(results: Sequence[VerifyResult]) -> Verdict:
    """The verdict of the only answer."""
    assert len(results) == 1, results
    outcome = results[0].outcome
    assert isinstance(outcome, Verdict), outcome
    return outcome
