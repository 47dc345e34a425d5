"""Weights as small integers: int8 with a scale per output, int4 with a scale and an offset per 32 inputs of an output.

Of linear layers only, rounded to the nearest. Activations stay in the model's dtype, and so do embeddings and norms.
int4's groups are those of GGUF's 4-bit formats, so that a model made from such a file loses next to nothing. With int4
the head is int8: its outputs are the tokens' scores themselves, with no layer after it to even an error out.

A product of quantised weights is one of the integers wherever the engine's kernels take them; elsewhere it is one of
the numbers they stand for, rounded to the model's dtype: slower, but no worse. The integers are the same on every
machine: whatever decides on one is computed element by element.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from paceline.speculation.errors import InvalidRequest

GROUP = 32  # inputs that share a scale in int4
# Of a group's range, about its middle: what is lost at the ends may be won inside.
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
_BLOCK = 1 << 22  # weights looked at together: a whole head in float32 would take many times its room


@dataclass(frozen=True, slots=True)
class Quantised:
    """Weights [out, in]: integers times scales, plus offsets."""

    integers: Tensor  # int8 [out, in]; of 8 bits -127 to 127, of 4 bits 0 to 15
    scales: Tensor  # bfloat16 [out, groups]
    offsets: Tensor | None  # bfloat16 [out, groups], of 4 bits
    group: int  # inputs of a group; the last one may have fewer

    @property
    def bits(self) -> int:
        """Of an integer."""
        return 8 if self.offsets is None else 4

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The numbers they stand for, [out, in]."""
        out = self.integers.float() * self._spread(self.scales)
        return (out if self.offsets is None else out + self._spread(self.offsets)).to(dtype)

    def _spread(self, each: Tensor) -> Tensor:
        """[out, groups] → [out, in]."""
        return each.float().repeat_interleave(self.group, 1)[:, : self.integers.shape[1]]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a model's weights are kept."""

    name: str
    bits: int  # of layers
    head_bits: int

    def __str__(self) -> str:
        """What of it fixes the integers."""
        words = {8: "int8 with a scale per output", 4: f"int4 with a scale and an offset per {GROUP} inputs"}
        head = "" if self.bits == self.head_bits else f", head {words[self.head_bits]}"
        return words[self.bits] + head


_SCHEMES = {"int8": Scheme("int8", 8, 8), "int4": Scheme("int4", 4, 8)}


def scheme_of(name: str) -> Scheme | None:
    """The scheme of a name; None of the empty one, which keeps weights as they are. Raises InvalidRequest."""
    if name and name not in _SCHEMES:
        raise InvalidRequest("weights", expected=f"{' or '.join(_SCHEMES)}, or nothing", got=name)
    return _SCHEMES.get(name)


def quantise(weight: Tensor, bits: int) -> Quantised:
    """Weights [out, in] of any float type as integers of 8 or 4 bits."""
    rows = max(1, _BLOCK // weight.shape[1])
    starts = range(0, len(weight), rows)
    parts = [(_int8 if bits == 8 else _int4)(weight[start : start + rows].detach().float()) for start in starts]
    whole = [torch.cat(each) for each in zip(*parts, strict=True)]
    if bits == 8:
        return Quantised(whole[0], whole[1], None, weight.shape[1])
    return Quantised(whole[0], whole[1], whole[2], GROUP)


def _int8(weight: Tensor) -> tuple[Tensor, ...]:
    scales = _kept(weight.abs().amax(1, keepdim=True) / 127)
    integers = (weight / scales.float()).round_().clamp_(-127, 127)
    return integers.to(torch.int8), scales


def _int4(weight: Tensor) -> tuple[Tensor, ...]:
    outputs, inputs = weight.shape
    groups = functional.pad(weight, (0, -inputs % GROUP), mode="replicate").view(outputs, -1, GROUP)
    least, most = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    best = _rounded(groups, least, most)
    for shrink in _SHRINKS[1:]:
        cut = (most - least) * (0.5 * (1 - shrink))
        tried = _rounded(groups, least + cut, most - cut)
        better = tried[-1] < best[-1]
        best = tuple(torch.where(better, new, old) for new, old in zip(tried, best, strict=True))
    integers, scales, offsets, _ = best
    return integers.view(outputs, -1)[:, :inputs].to(torch.int8), scales.squeeze(2), offsets.squeeze(2)


def _rounded(groups: Tensor, least: Tensor, most: Tensor) -> tuple[Tensor, ...]:
    """Integers, scales, offsets and squared errors, which are summed in one order on every machine."""
    scales, offsets = _kept((most - least) / 15), least.to(torch.bfloat16)
    integers = ((groups - offsets.float()) / scales.float()).round_().clamp_(0, 15)
    errors = (integers * scales.float() + offsets.float() - groups).square_()
    while errors.shape[2] > 1:
        half = errors.shape[2] // 2
        errors = errors[:, :, :half] + errors[:, :, half:]
    return integers, scales, offsets, errors


def _kept(scales: Tensor) -> Tensor:
    """As scales are stored; where weights do not differ, any scale would do."""
    rounded = scales.to(torch.bfloat16)
    return torch.where(rounded == 0, torch.ones_like(rounded), rounded)
