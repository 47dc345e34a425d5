"""Hidden states come out of a step as transformers computes them, and nothing else changes for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from paceline.engine.fake import FakeEngine, FakeOptions
from paceline.engine.fake_features import HIDDEN_SIZE, LAYERS
from paceline.engine.interface import Hidden, Slice, StepPlan, Wanted
from paceline.engine.torch_engine import TorchEngine
from paceline.speculation.errors import InvalidRequest, Unsupported

from tests.congruence.engine_tiny import GREEDY, configs, piece, tiny_engine, tiny_model, tokens_of

ALL = Wanted((-1, 0, 1), last=True)
HOW: list[dict[str, Any]] = [{"native": True}, {"native": True, "multiplies": False}, {"native": False}]
TOKENS = tokens_of(3, 150)


def asking(*slices: Slice, wanted: Wanted = ALL) -> StepPlan:
    """A step all of whose slices want hidden states."""
    return StepPlan(0, tuple(replace(each, hidden=True) for each in slices), wanted)


def hidden_of(engine: TorchEngine, plan: StepPlan) -> list[Hidden]:
    found = [each.hidden for each in engine.step(plan).by_slice()]
    assert all(each is not None for each in found)
    return [each for each in found if each is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_they_are_what_transformers_computes(name: str, how: dict[str, Any], dtype: torch.dtype) -> None:
    config = configs()[name]
    with torch.no_grad():
        out = tiny_model(config, dtype)(torch.tensor([TOKENS]), output_hidden_states=True)
    embedded, first, last = (states[0].float() for states in out.hidden_states)
    engine = tiny_engine(config, dtype, **how)
    assert (engine.info.layers, engine.info.hidden_size) == (2, 48)
    assert engine.reserve("a", 150)
    [hidden] = hidden_of(engine, asking(piece("a", 0, TOKENS)))
    assert hidden.last is not None
    assert hidden.layers.dtype == dtype
    assert hidden.layers.shape == (150, 3 * 48)
    assert torch.equal(hidden.layers[:, :48].float(), embedded)
    # Rows of a deep model in bfloat16 drift by rounding; what is told apart here are layers, rows and norms.
    for ours, theirs in ((hidden.layers[:, 48:96], first), (hidden.last, last)):
        off = (ours.float() - theirs).square().mean().sqrt() / theirs.square().mean().sqrt()
        assert off < (1e-5 if dtype == torch.float32 else 0.03), off
    normed = engine._model.model.norm(hidden.layers[None, :, 96:])[0]
    torch.testing.assert_close(normed, hidden.last, rtol=2**-7, atol=1e-2 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", HOW)
def test_no_logit_changes_a_bit_for_it(how: dict[str, Any], dtype: torch.dtype) -> None:
    engine = tiny_engine(configs()["llama"], dtype, **how)
    assert engine.reserve("a", 150)
    assert engine.reserve("b", 20)
    slices = piece("a", 0, TOKENS), piece("b", 0, TOKENS[:20])
    alone = engine.forward(StepPlan(0, slices))
    for wanted in (ALL, Wanted((1,)), Wanted((-1,))):
        assert torch.equal(engine.forward(asking(*slices, wanted=wanted)), alone)


@pytest.mark.parametrize("how", HOW)
def test_their_bits_do_not_depend_on_chunks_and_neighbours(how: dict[str, Any]) -> None:
    engine = tiny_engine(configs()["llama"], torch.bfloat16, **how)
    assert engine.reserve("a", 150)
    assert engine.reserve("b", 40)
    [whole] = hidden_of(engine, asking(piece("a", 0, TOKENS)))
    assert whole.last is not None
    beside = piece("b", 0, tokens_of(4, 31))
    for start, end in ((0, 70), (70, 71), (71, 150)):  # without and with rows whose logits are wanted
        chunk = replace(piece("a", start, TOKENS[start:end], samples=start % 2), hidden=True)
        step = engine.step(StepPlan(0, (beside, chunk), ALL))
        assert step.hidden[0] is None
        part = step.by_slice()[1].hidden
        assert part is not None
        assert part.last is not None
        assert torch.equal(part.layers, whole.layers[start:end])
        assert torch.equal(part.last, whole.last[start:end])


def test_layers_that_are_not_there_are_refused_by_name() -> None:
    engine = tiny_engine(configs()["llama"])
    assert engine.reserve("a", 4)
    for layers in ((), (2,), (-2,), (1, 0), (0, 0)):
        with pytest.raises(InvalidRequest, match=r"layers: expected .* -1 \(the embedding\) and 1"):
            engine.step(asking(piece("a", 0, TOKENS[:4]), wanted=Wanted(layers)))
        with pytest.raises(InvalidRequest, match="layers"):
            FakeEngine().step(asking(piece("a", 0, TOKENS[:4]), wanted=Wanted((LAYERS,))))
    other = tiny_engine(configs()["gpt2"])
    assert other.reserve("a", 4)
    with pytest.raises(Unsupported, match="hidden states of GPT2Model"):
        other.step(asking(piece("a", 0, TOKENS[:4])))


def test_a_fakes_hidden_states_are_a_function_of_the_last_tokens() -> None:
    engine = FakeEngine(FakeOptions(order=2))
    assert engine.reserve("a", 20)
    tokens = tuple(b"once upon a time")
    engine.step(StepPlan(0, (Slice("a", 0, tokens[:10], 0, GREEDY, 1),)))
    step = engine.step(asking(Slice("a", 10, tokens[10:], 1, GREEDY, 1), wanted=Wanted((0, 2), last=True)))
    [hidden] = [each.hidden for each in step.by_slice()]
    assert hidden is not None
    assert hidden.last is not None
    assert hidden.layers.shape == (6, 2 * HIDDEN_SIZE)
    other = FakeEngine(FakeOptions(order=2))
    assert torch.equal(hidden.layers[3, HIDDEN_SIZE:], other.states.state(2, tokens[12:14]))
    assert torch.equal(hidden.last[3], other.states.state(LAYERS, tokens[:14]))
    assert not torch.equal(hidden.last[3], other.states.state(LAYERS, tokens[:13]))
