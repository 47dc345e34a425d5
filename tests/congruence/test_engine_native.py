"""The engine's own kernels compute what torch does, and every row by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from paceline.engine import native
from paceline.engine.fused import FusedLayer, FusedStack
from paceline.engine.linear import NativeLinear, TiledLinear
from paceline.engine.native import Kernels
from torch import Tensor
from torch.nn import functional

from tests.congruence.engine_tiny import VOCAB, configs, piece, plan, tiny_engine, tiny_model, tokens_of

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]


def kernels_or_skip(dtype: torch.dtype) -> Kernels:
    kernels = native.kernels(dtype, CPU)
    if kernels is None:
        pytest.skip("no native kernels on this machine")
    return kernels


def noise(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("outputs", "inputs"), [(70, 50), (32, 2), (1, 64), (301, 576)])
def test_products_are_right_and_rows_do_not_mind_their_number_or_place(outputs: int, inputs: int) -> None:
    kernels = kernels_or_skip(torch.bfloat16)
    weight, bias, rows = noise(outputs, inputs), noise(outputs, seed=1), noise(61, inputs, seed=2)
    linear = NativeLinear(weight, bias, kernels=kernels)
    out = linear(rows)
    expected = rows.float() @ weight.float().T + bias.float()
    torch.testing.assert_close(out.float(), expected, rtol=2**-8, atol=1e-4 * inputs)
    for count in range(1, 61):
        assert torch.equal(linear(rows[count:]), out[count:]), count
    residual = noise(61, outputs, seed=3)
    assert torch.equal(linear.added(rows, residual), residual + out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 60, 576])
def test_norms_and_gates_round_as_torch_does(dtype: torch.dtype, width: int) -> None:
    kernels = kernels_or_skip(dtype)
    rows, weight = 5 * noise(9, width, dtype=dtype), noise(width, dtype=dtype, seed=1)
    scaled = rows.float() * torch.rsqrt(rows.float().square().mean(-1, keepdim=True) + 1e-5)
    one_bit = 2**-7 if dtype == torch.bfloat16 else 1e-6
    close: dict[str, Any] = {"rtol": one_bit, "atol": 1e-6}
    torch.testing.assert_close(kernels.norm(rows, weight, 1e-5), weight * scaled.to(dtype), **close)
    both = 30 * noise(9, 2 * width, dtype=dtype, seed=2)
    torch.testing.assert_close(kernels.gate(both), functional.silu(both[:, :width]) * both[:, width:], **close)


def test_far_gates_are_neither_nan_nor_lost() -> None:
    kernels = kernels_or_skip(torch.float32)
    gates = torch.tensor([[-1e30, -100.0, -1.0, 0.0, 1.0, 100.0, 1e30, torch.inf]])
    out = kernels.gate(torch.cat([gates, torch.ones_like(gates)], 1))
    torch.testing.assert_close(out, functional.silu(gates), rtol=1e-6, atol=1e-6)
    nan = kernels.gate(torch.full((1, 2), torch.nan))
    assert nan.isnan().all()


def test_nothing_native_where_it_is_switched_off_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.kernels(torch.float16, CPU) is None
    assert native.kernels(torch.float32, torch.device("meta")) is None
    monkeypatch.setenv("PACELINE_NATIVE", "0")
    assert native.kernels(torch.float32, CPU) is None


def test_without_a_compiler_the_engine_runs_on_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for compiler in ("no-such-compiler", "false"):  # missing, and one that fails
        monkeypatch.setenv("CXX", compiler)
        monkeypatch.setenv("PACELINE_HOME", str(tmp_path))
        native.library.cache_clear()
        try:
            assert native.kernels(torch.float32, CPU) is None
        finally:
            native.library.cache_clear()


def test_which_kernels_run_is_part_of_the_numerics_class() -> None:
    kernels = kernels_or_skip(torch.float32)
    ours, torchs = (tiny_engine(configs()["llama"], native=choice).info for choice in (True, False))
    assert ours.numerics["native"] == kernels.identity
    assert torchs.numerics["native"] == "none"
    assert ours.numerics_class != torchs.numerics_class


@pytest.mark.parametrize("dtype", DTYPES)
def test_llamas_layers_are_fused(dtype: torch.dtype) -> None:
    kernels = kernels_or_skip(dtype)
    engine = tiny_engine(configs()["llama"], dtype)
    assert engine.info.numerics["fused_layers"] == "2"
    kinds = {type(layer) for layer in engine._model.model.layers}
    assert kinds == {FusedStack if kernels.multiplies else FusedLayer}
    assert type(engine._model.lm_head) is (NativeLinear if kernels.multiplies else TiledLinear)


def test_fused_layers_take_whatever_products_there_are() -> None:
    kernels_or_skip(torch.bfloat16)
    ours = tiny_engine(configs()["llama"], torch.bfloat16)
    mixed = tiny_engine(configs()["llama"], torch.bfloat16, multiplies=False)
    assert mixed.info.numerics["matmul"] != "native"
    assert mixed.info.numerics["fused_layers"] == "2"
    logits = []
    for engine in (ours, mixed):
        assert engine.reserve("a", 100)
        logits.append(engine.forward(plan(piece("a", 0, tokens_of(1, 90)))).float())
    assert (logits[0] - logits[1]).std() < 0.02 * logits[0].std()  # bfloat16 rounds at different places


def test_a_stack_has_the_bits_of_its_layers() -> None:
    if not kernels_or_skip(torch.bfloat16).multiplies:
        pytest.skip("products are oneDNN's here")
    engine = tiny_engine(configs()["llama"], torch.bfloat16)
    assert engine.reserve("a", 100)
    step = plan(piece("a", 0, tokens_of(1, 90)))
    whole = engine.forward(step)
    engine._model.model.layers = torch.nn.ModuleList(engine._model.model.layers[0]._layers)
    assert torch.equal(engine.forward(step), whole)


def test_a_layer_that_looks_like_llamas_and_computes_something_else_is_left_alone() -> None:
    kernels_or_skip(torch.float32)
    config = transformers.GraniteConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, residual_multiplier=0.3, attention_multiplier=0.2, initializer_range=0.15,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    tokens = tokens_of(5, 40)
    with torch.no_grad():
        expected = tiny_model(config, torch.float32)(torch.tensor([tokens])).logits[0]
    engine = tiny_engine(config)
    assert engine.info.numerics["fused_layers"] == "0"
    assert engine.reserve("a", 40)
    torch.testing.assert_close(engine.forward(plan(piece("a", 0, tokens))), expected, atol=1e-4, rtol=0)


def test_a_window_is_kept_by_fused_layers() -> None:
    kernels_or_skip(torch.float32)
    config = transformers.MistralConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=70, initializer_range=0.15, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    tokens = tokens_of(6, 200)
    with torch.no_grad():
        expected = tiny_model(config, torch.float32)(torch.tensor([tokens])).logits[0]
    engine = tiny_engine(config)
    assert engine.info.numerics["fused_layers"] == "2"
    assert engine.reserve("a", 200)
    torch.testing.assert_close(engine.forward(plan(piece("a", 0, tokens))), expected, atol=1e-4, rtol=0)
