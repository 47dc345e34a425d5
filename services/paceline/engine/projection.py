"""Context features: a target's hidden states of a few layers, projected to one vector per position.

A hidden-state drafter reads nothing else of its target. Projecting where the states are made keeps what is stored and
sent small: ``width`` numbers per position instead of one hidden state for each layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from paceline.engine.linear import Linear, MakeLinear
from paceline.engine.native import Kernels


@dataclass(frozen=True, slots=True)
class Projector:
    """A matrix, with RMSNorms over its output or its inputs, of a drafter's checkpoint."""

    fingerprint: str  # of all that fixes what features mean; equal ones are interchangeable
    layers: tuple[int, ...]  # of the target, ascending; counted as in ``taps``
    weight: Tensor  # [width, len(layers) * hidden_size]
    norm: Tensor | None  # [width], of the output
    eps: float
    target: str = ""  # fingerprint of the one it was trained for; empty does not say
    input_norms: tuple[Tensor, ...] = ()  # of as many equal parts of the inputs, in turn

    @property
    def width(self) -> int:
        """Numbers per position."""
        return self.weight.shape[0]


class Projection:
    """A projector as an engine runs it: every row by itself, whatever comes with it."""

    def __init__(self, projector: Projector, make: MakeLinear, kernels: Kernels | None, like: Tensor) -> None:
        """Args: make: the engine's products; like: of the engine's dtype and device."""
        self.projector = projector
        self._linear: Linear = make(projector.weight.to(like), None)  # type: ignore[assignment]
        eps, norm = projector.eps, projector.norm
        self._norm = (lambda rows: rows) if norm is None else _norm(norm.to(like), eps, kernels)
        self._input_norms = [_norm(each.to(like), eps, kernels) for each in projector.input_norms]

    def __call__(self, states: Tensor) -> Tensor:
        """[N, len(layers) * hidden_size], as many rows as the engine's products take → [N, width]."""
        if self._input_norms:
            parts = states.chunk(len(self._input_norms), dim=1)
            pairs = zip(self._input_norms, parts, strict=True)
            states = torch.cat([norm(part.contiguous()) for norm, part in pairs], dim=1)
        return self._norm(self._linear(states))


def _norm(weight: Tensor, eps: float, kernels: Kernels | None) -> Callable[[Tensor], Tensor]:
    if kernels is not None:
        return lambda rows: kernels.norm(rows, weight, eps)
    width = len(weight)

    def torchs(rows: Tensor) -> Tensor:
        scaled = functional.rms_norm(rows.to(torch.float32), (width,), None, eps)
        return weight * scaled.to(rows.dtype)

    return torchs
