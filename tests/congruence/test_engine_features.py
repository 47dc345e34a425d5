"""Context features live beside the KV pages: as right, as shared and as lost as what they lie beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from paceline.engine.fake import FakeEngine, FakeOptions
from paceline.engine.fake_features import HIDDEN_SIZE
from paceline.engine.interface import Hidden, KvRequest, Slice, StepPlan, Wanted
from paceline.engine.pages import PAGE
from paceline.engine.projection import Projector
from paceline.engine.torch_engine import TorchEngine
from paceline.speculation.errors import InvalidRequest, Unsupported
from torch import Tensor

from tests.congruence.engine_tiny import GREEDY, configs, piece, plan, tiny_engine, tokens_of
from tests.congruence.test_engine_hidden import HOW, asking, hidden_of

WIDTH = 24
TOKENS = tokens_of(3, 70)


def projector(name: str, layers: tuple[int, ...], *, hidden: int = 48, width: int = WIDTH) -> Projector:
    draw = torch.Generator().manual_seed(len(layers))
    weight = torch.randn(width, len(layers) * hidden, generator=draw) * hidden**-0.5
    return Projector(name, layers, weight, torch.rand(width, generator=draw) + 0.5, 1e-5)


ONE, TWO = projector("one", (0,)), projector("two", (-1, 1))
BARE = dataclasses.replace(TWO, fingerprint="bare", norm=None)  # as EAGLE-3's, of which some norm what they read
WHOLE = dataclasses.replace(BARE, fingerprint="whole", input_norms=(torch.linspace(0.5, 1.5, 96),))
PARTS = dataclasses.replace(BARE, fingerprint="parts", input_norms=WHOLE.input_norms[0].chunk(2))


def engine_of(dtype: torch.dtype, how: dict[str, Any]) -> TorchEngine:
    return tiny_engine(configs()["llama"], dtype, projectors=(ONE, TWO, BARE, WHOLE, PARTS), **how)


def features(engine: TorchEngine, session: str, projected: Projector, start: int, end: int) -> Tensor:
    [data] = engine.read_features([engine.locate_features(session, projected.fingerprint, start, end)])
    assert len(data) == (end - start) * engine.info.features[projected.fingerprint]
    return torch.frombuffer(bytearray(data), dtype=engine._dtype).view(end - start, WIDTH)


def expected(hidden: Hidden, projected: Projector, columns: list[int]) -> Tensor:
    states = torch.cat([hidden.layers[:, 48 * c : 48 * (c + 1)].float() for c in columns], 1)
    if projected.input_norms:
        parts = states.chunk(len(projected.input_norms), 1)
        pairs = zip(parts, projected.input_norms, strict=True)
        states = torch.cat([normed(part, norm, projected.eps) for part, norm in pairs], 1)
    rows = states @ projected.weight.to(hidden.layers.dtype).float().T
    return rows if projected.norm is None else normed(rows, projected.norm, projected.eps)


def normed(rows: Tensor, norm: Tensor, eps: float) -> Tensor:
    return rows * torch.rsqrt(rows.square().mean(1, keepdim=True) + eps) * norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", HOW)
def test_they_are_the_projected_hidden_states_of_their_positions(how: dict[str, Any], dtype: torch.dtype) -> None:
    engine = engine_of(dtype, how)
    assert engine.reserve("a", 70)
    [hidden] = hidden_of(engine, asking(piece("a", 0, TOKENS), wanted=Wanted((-1, 0, 1))))
    close: dict[str, Any] = {"rtol": 3e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for projected in (ONE, TWO, BARE, WHOLE, PARTS):
        columns = [1] if projected is ONE else [0, 2]
        kept = features(engine, "a", projected, 0, 70)
        torch.testing.assert_close(kept.float(), expected(hidden, projected, columns), **close)
        assert torch.equal(features(engine, "a", projected, 11, 40), kept[11:40])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", HOW)
def test_keeping_them_changes_no_logit_and_no_numerics_class(how: dict[str, Any], dtype: torch.dtype) -> None:
    keeping, plain = engine_of(dtype, how), tiny_engine(configs()["llama"], dtype, **how)
    assert keeping.info.numerics_class == plain.info.numerics_class
    assert not plain.info.features
    step = plan(piece("a", 0, TOKENS), piece("b", 0, TOKENS[:9], samples=0))
    logits = []
    for engine in (keeping, plain):
        assert engine.reserve("a", 70)
        assert engine.reserve("b", 9)
        logits.append(engine.forward(step))
    assert torch.equal(*logits)


def test_their_bits_do_not_depend_on_chunks_and_neighbours() -> None:
    engine = engine_of(torch.bfloat16, {})
    for session in "abc":
        assert engine.reserve(session, 70)
    engine.forward(plan(piece("a", 0, TOKENS)))
    engine.forward(plan(piece("c", 0, TOKENS[5:30]), piece("b", 0, TOKENS[:33], samples=0)))
    engine.forward(plan(piece("b", 33, TOKENS[33:])))
    assert torch.equal(features(engine, "a", TWO, 0, 70), features(engine, "b", TWO, 0, 70))


def test_rejected_rows_are_overwritten() -> None:
    engine = engine_of(torch.bfloat16, {})
    for session in "ab":
        assert engine.reserve(session, 30)
    engine.forward(plan(piece("a", 0, TOKENS[:20])))
    engine.forward(plan(piece("b", 0, (*TOKENS[:12], 7, 8, 9))))  # drafts that were not accepted …
    engine.forward(plan(piece("b", 12, TOKENS[12:20])))  # … and what came instead
    assert torch.equal(features(engine, "a", ONE, 0, 20), features(engine, "b", ONE, 0, 20))


def run(engine: TorchEngine, session: str, tokens: tuple[int, ...], start: int) -> None:
    engine.forward(plan(piece(session, start, tokens[start:], samples=1)))


def test_shared_pages_bring_theirs_and_evicted_ones_lose_them() -> None:
    engine = tiny_engine(configs()["llama"], torch.bfloat16, projectors=(ONE,), kv_tokens=8 * PAGE)
    prompt = TOKENS[: 3 * PAGE + 1]
    assert engine.admit(KvRequest("a", prompt, len(prompt))) == 0
    run(engine, "a", prompt, 0)
    engine.publish("a", prompt, len(prompt))
    first = features(engine, "a", ONE, 0, len(prompt))
    engine.free("a")
    assert engine.admit(KvRequest("b", prompt, len(prompt))) == 3 * PAGE  # without a step: nothing was computed again
    assert torch.equal(features(engine, "b", ONE, 0, 3 * PAGE), first[: 3 * PAGE])
    run(engine, "b", prompt, 3 * PAGE)
    assert torch.equal(features(engine, "b", ONE, 0, len(prompt)), first)
    engine.free("b")
    other = tokens_of(9, 8 * PAGE)
    assert engine.admit(KvRequest("c", other, len(other))) == 0  # takes every page there is
    run(engine, "c", other, 0)
    engine.free("c", keep=False)
    assert engine.admit(KvRequest("d", prompt, len(prompt))) == 0
    run(engine, "d", prompt, 0)
    assert torch.equal(features(engine, "d", ONE, 0, len(prompt)), first)


FAR, NARROW = projector("far", (5,)), projector("narrow", (0,), hidden=47)


@pytest.mark.parametrize(("wrong", "field"), [(FAR, "projectors: expected"), (NARROW, "projectors: .*48 inputs")])
def test_a_projector_that_does_not_fit_is_refused_by_name(wrong: Projector, field: str) -> None:
    makers: list[Callable[[], object]] = [
        lambda: tiny_engine(configs()["llama"], projectors=(wrong,)),
        lambda: FakeEngine(projectors=(wrong,)),
    ]
    with pytest.raises(InvalidRequest, match=field):
        makers[0]()
    with pytest.raises(InvalidRequest, match="projectors"):
        makers[1]()


def test_a_fakes_features_are_a_function_of_the_last_tokens_and_live_on_its_pages() -> None:
    fake = FakeEngine(FakeOptions(order=2), projectors=(projector("fake", (1, 3), hidden=HIDDEN_SIZE),))
    assert fake.info.features == {"fake": 2 * WIDTH}
    tokens = tuple(b"once upon a time, once")
    assert fake.admit(KvRequest("a", tokens, len(tokens))) == 0
    fake.step(StepPlan(0, (Slice("a", 0, tokens, 0, GREEDY, 1),)))
    fake.publish("a", tokens, len(tokens))
    fake.free("a")
    assert fake.admit(KvRequest("b", tokens, len(tokens))) == PAGE
    [data] = fake.read_features([fake.locate_features("b", "fake", 0, PAGE)])
    assert data == b"".join(fake.states.features("fake", tokens[: at + 1]) for at in range(PAGE))
    assert fake.states.features("fake", tokens[:4]) == fake.states.features("fake", tokens[18:])


def test_a_model_whose_layers_are_out_of_reach_keeps_none() -> None:
    with pytest.raises(Unsupported, match="hidden states of GPT2Model"):
        tiny_engine(configs()["gpt2"], projectors=(ONE,))
