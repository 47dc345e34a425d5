"""Quantised weights: products of integers are those of the numbers they stand for, and a row's bits are its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from paceline.engine import native
from paceline.engine.fake import fake_tokenizer_files
from paceline.engine.fused import FusedStack
from paceline.engine.linear import NativeLinear
from paceline.engine.native import Kernels
from paceline.engine.quantised import quantise
from paceline.engine.torch_engine import TorchEngine
from paceline.runtime.config import EngineConfig
from paceline_client import Speculation
from torch import Tensor

from tests.congruence.engine_tiny import configs, piece, plan, tiny_engine, tiny_model, tokens_of
from tests.congruence.small_cluster import small_cluster

TOKENS = tokens_of(1, 90)


def kernels_or_skip() -> Kernels:
    kernels = native.kernels(torch.bfloat16, torch.device("cpu"))
    if kernels is None or not kernels.multiplies_integers:
        pytest.skip("no products of integers on this machine")
    return kernels


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("outputs", "inputs"), [(70, 52), (32, 4), (1, 64), (301, 576), (96, 32)])
def test_products_are_right_and_rows_do_not_mind_their_number_or_place(bits: int, outputs: int, inputs: int) -> None:
    kernels = kernels_or_skip()
    weight, bias, rows = noise(outputs, inputs), noise(outputs, seed=1), noise(61, inputs, seed=2)
    quantised = quantise(weight, bits)
    linear = NativeLinear(quantised, bias, kernels=kernels)
    out = linear(rows)
    expected = rows.double() @ quantised.dequantised(torch.float32).double().T + bias.double()
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-5 * inputs)
    for count in range(1, 61):
        assert torch.equal(linear(rows[count:]), out[count:]), count
        assert torch.equal(linear(rows[:count]), out[:count]), count
    residual = noise(61, outputs, seed=3)
    assert torch.equal(linear.added(rows, residual), residual + out)


@pytest.mark.parametrize("bits", [8, 4])
def test_every_integer_is_packed_where_it_belongs(bits: int) -> None:
    """Rows with a single one in them pick single weights."""
    kernels = kernels_or_skip()
    quantised = quantise(noise(45, 72), bits)
    out = NativeLinear(quantised, None, kernels=kernels)(torch.eye(72).to(torch.bfloat16))
    torch.testing.assert_close(out.T.float(), quantised.dequantised(torch.float32), rtol=2**-8, atol=1e-6)


def logits(engine: TorchEngine) -> Tensor:
    assert engine.reserve("a", len(TOKENS))
    out = engine.forward(plan(piece("a", 0, TOKENS))).float()
    engine.free("a")
    return out


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("arch", ["llama", "qwen3", "gpt2"])
def test_without_such_kernels_an_engine_runs_on_the_same_weights(arch: str, weights: str) -> None:
    kernels_or_skip()
    ours = tiny_engine(configs()[arch], torch.bfloat16, weights=weights)
    torchs = tiny_engine(configs()[arch], torch.bfloat16, weights=weights, native=False)
    plain = logits(tiny_engine(configs()[arch], torch.bfloat16))
    mine, theirs = logits(ours), logits(torchs)
    assert ours.info.numerics["matmul"] == f"native {weights}"
    assert torchs.info.numerics["matmul"] in {"packed", "plain"}
    assert ours.info.numerics["quantisation"] == torchs.info.numerics["quantisation"]
    assert ours.info.numerics_class != torchs.info.numerics_class
    rounding = (mine - theirs).std() / plain.std()
    quantising = (mine - plain).std() / plain.std()
    assert rounding < 0.03
    if weights == "int4":
        assert 0.03 < quantising < 0.5  # it is the quantised model that runs, in both


def test_quantised_layers_run_as_one_stack_too() -> None:
    kernels_or_skip()
    engine = tiny_engine(configs()["llama"], torch.bfloat16, weights="int4")
    assert engine.info.numerics["fused_layers"] == "2"
    (stack,) = engine._model.model.layers
    assert type(stack) is FusedStack
    layer, head = stack._layers[0]._narrow, engine._model.lm_head
    assert isinstance(layer, NativeLinear)
    assert (layer.arguments().bits, head.arguments().bits) == (4, 8)
    whole = logits(engine)
    engine._model.model.layers = torch.nn.ModuleList(stack._layers)
    assert torch.equal(logits(engine), whole)


def test_the_other_mode_takes_quantised_weights() -> None:
    exact = logits(tiny_engine(configs()["llama"], torch.bfloat16, weights="int8"))
    free = logits(tiny_engine(configs()["llama"], torch.bfloat16, weights="int8", deterministic=False))
    assert (exact - free).std() < 0.03 * exact.std()


@pytest.mark.parametrize(("target", "draft"), [("", "int4"), ("int8", ""), ("int8", "int4")])
async def test_the_draft_models_weights_change_no_token(target: str, draft: str, tmp_path: Path) -> None:
    folder = tmp_path / "tiny-model"
    tiny_model(configs()["llama"], torch.bfloat16).save_pretrained(folder)
    for name, content in fake_tokenizer_files().items():
        (folder / name).write_bytes(content)
    models = [
        EngineConfig(model=str(folder), kv_tokens=1024, threads=1, weights=weights) for weights in (target, draft)
    ]
    drafting = Speculation(mode="fixed", max_draft_tokens=4, drafter="model")
    prompt = [72, 101, 108, 108, 111]
    async with small_cluster(*models) as (_, client):
        for temperature in (0.0, 0.8):
            drafted, plain = [
                await client.generate(
                    prompt, seed=5, max_tokens=40, temperature=temperature, ignore_eos=True, speculation=speculation
                )
                for speculation in (drafting, Speculation(mode="off"))
            ]
            assert drafted.token_ids == plain.token_ids
            assert drafted.speculation.accepted_tokens > 0
            verifiers = {token.verifier_model_id for token in drafted.tokens}
            proposers = {token.proposer_model_id for token in drafted.tokens}
            assert verifiers == {f"tiny-model@{target}" if target else "tiny-model"}
            assert (f"tiny-model@{draft}" if draft else "tiny-model") in proposers
