"""Weights of a linear layer in the order the kernels read them; see kernels/weights.h."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.engine.native import LinearArguments
from paceline.engine.quantised import Quantised

_PANEL = 32  # outputs read together


@dataclass(frozen=True, slots=True)
class Packed:
    """Packed weights [outputs, inputs]."""

    weights: Tensor
    scales: Tensor | None  # bfloat16 [panels, groups, 1 or 2, 32]
    outputs: int
    inputs: int
    bits: int
    group: int

    def arguments(self, bias: Tensor | None) -> LinearArguments:
        """What the kernels need; whoever asks keeps this and the bias alive."""
        scales, shift = (None if tensor is None else tensor.data_ptr() for tensor in (self.scales, bias))
        return LinearArguments(self.weights.data_ptr(), scales, shift, self.bits, self.group)


def pack(weight: Tensor | Quantised) -> Packed:
    """Weights [out, in], bfloat16 with an even number of inputs or quantised with a multiple of 4."""
    if isinstance(weight, Quantised):
        return _pack_quantised(weight)
    outputs, inputs = weight.shape
    assert inputs % 2 == 0, weight.shape
    panels = _panels(weight.detach()).view(-1, _PANEL, inputs // 2, 2).transpose(1, 2)
    return Packed(panels.contiguous(), None, outputs, inputs, 16, inputs)


def _pack_quantised(quantised: Quantised) -> Packed:
    outputs, inputs = quantised.integers.shape
    assert inputs % 4 == 0, quantised.integers.shape
    panels = _panels(quantised.integers)
    weights = _pack_int8(panels) if quantised.bits == 8 else _pack_int4(panels)
    each = [tensor for tensor in (quantised.scales, quantised.offsets) if tensor is not None]
    scales = torch.stack([_panels(tensor).view(-1, _PANEL, tensor.shape[1]).transpose(1, 2) for tensor in each], 2)
    return Packed(weights, scales, outputs, inputs, quantised.bits, quantised.group)


def _panels(weight: Tensor) -> Tensor:
    """Padded with zeros to whole panels: [panels * 32, in]."""
    padded = weight.new_zeros(-(-len(weight) // _PANEL) * _PANEL, weight.shape[1])
    padded[: len(weight)] = weight
    return padded


def _pack_int8(panels: Tensor) -> Tensor:
    """A sign bit and 7 bits: [panels, in / 2, lane, half, 8]. Bytes are interleaved within lanes of 16, so the 32 words
    of outputs 0 to 15 come from the first halves of the lanes."""
    signed = panels.abs().to(torch.uint8) | ((panels < 0).to(torch.uint8) << 7)
    words = signed.view(-1, 2, 16, panels.shape[1] // 2, 2).permute(0, 3, 1, 2, 4)  # panel, pair, half, output, input
    return words.reshape(len(panels) // _PANEL, -1, 2, 4, 8).transpose(2, 3).contiguous()


def _pack_int4(panels: Tensor) -> Tensor:
    """Words of four, as bytes of two: [panels, in / 4, output % 16, input % 2, pair % 2], each byte the weights of two
    outputs 16 apart."""
    halves = panels.to(torch.uint8).view(-1, 2, 16, panels.shape[1] // 4, 2, 2)
    low, high = halves.unbind(1)  # panel, output, step, pair, input
    return (low | high << 4).permute(0, 2, 1, 4, 3).contiguous()
