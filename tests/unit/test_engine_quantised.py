"""Weights become the nearest integers, the same ones on every machine and in whatever company."""

from __future__ import annotations

import pytest
import torch
from paceline.engine.quantised import GROUP, quantise
from torch import Tensor


def weights(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def test_int8_is_the_nearest_of_each_outputs_255_steps() -> None:
    weight = weights(9, 70) * torch.logspace(-3, 2, 9)[:, None]
    quantised = quantise(weight, 8)
    assert (quantised.bits, quantised.scales.shape, int(quantised.integers.abs().max())) == (8, (9, 1), 127)
    half = quantised.scales.float() / 2
    edge = weight.abs().amax(1, keepdim=True) * 2**-8  # the largest weight is cut to 127 steps of a rounded scale
    assert ((quantised.dequantised(torch.float32) - weight).abs() <= half * 1.0001 + edge).all()


def test_int4_of_numbers_on_such_a_grid_is_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    integers = torch.randint(0, 16, (5, 3, GROUP), generator=generator).float()
    integers[:, :, 0], integers[:, :, 1] = 0, 15
    scales = 2.0 ** torch.randint(-6, 0, (5, 3, 1), generator=generator)
    weight = (integers * scales - 4 * scales).view(5, -1)
    quantised = quantise(weight, 4)
    assert torch.equal(quantised.dequantised(torch.float32), weight)
    assert torch.equal(quantised.integers.float(), integers.view(5, -1))


@pytest.mark.parametrize("inputs", [4, 32, 52, 64])
def test_int4_errs_by_little_more_than_half_a_step(inputs: int) -> None:
    weight = weights(12, inputs)
    quantised = quantise(weight, 4)
    assert quantised.bits == 4
    assert quantised.scales.shape == (12, -(-inputs // GROUP))
    assert int(quantised.integers.min()) == 0
    assert int(quantised.integers.max()) == 15
    error = (quantised.dequantised(torch.float32) - weight).square().mean().sqrt()
    step = quantised.scales.float().mean()
    assert error < 0.5 * step


def test_searching_the_range_never_errs_more_than_the_range_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights(64, 96) ** 3  # a few far from the others
    searched = (quantise(weight, 4).dequantised(torch.float32) - weight).square().view(64, 3, GROUP).sum(2)
    monkeypatch.setattr("paceline.engine.quantised._SHRINKS", (1.0,))
    plain = (quantise(weight, 4).dequantised(torch.float32) - weight).square().view(64, 3, GROUP).sum(2)
    assert (searched <= plain * 1.0001).all()
    assert searched.sum() < 0.97 * plain.sum()


@pytest.mark.parametrize("bits", [8, 4])
def test_an_output_does_not_mind_the_others(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights(50, 96)
    whole = quantise(weight, bits)
    monkeypatch.setattr("paceline.engine.quantised._BLOCK", 7 * 96)
    for begin, end in ((0, 50), (3, 11)):
        part = quantise(weight[begin:end], bits)
        assert torch.equal(part.integers, whole.integers[begin:end])
        assert torch.equal(part.dequantised(torch.bfloat16), whole.dequantised(torch.bfloat16)[begin:end])


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_that_do_not_differ(bits: int) -> None:
    weight = torch.zeros(3, 40)
    weight[1], weight[2] = 0.5, 1e-41  # the last too little for any scale
    out = quantise(weight, bits).dequantised(torch.float32)
    torch.testing.assert_close(out, weight, rtol=2**-8, atol=1e-40)
