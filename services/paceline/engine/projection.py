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
    """A matrix and an RMSNorm over its output, of a drafter's checkpoint."""

    fingerprint: str  # of all that fixes what features mean; equal ones are interchangeable
    layers: tuple[int, ...]  # of the target, ascending; counted as in ``taps``
    weight: Tensor  # [width, len(layers) * hidden_size]
    norm: Tensor  # [width]
    eps: float
    target: str = ""  # fingerprint of the one it was trained for; empty does not say

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
        self._norm = _norm(projector.norm.to(like), projector.eps, kernels)

    def __call__(self, states: Tensor) -> Tensor:
        """[N, len(layers) * hidden_size], as many rows as the engine's products take → [N, width]."""
        return self._norm(self._linear(states))


def _norm(weight: Tensor, eps: float, kernels: Kernels | None) -> Callable[[Tensor], Tensor]:
    if kernels is not None:
        return lambda rows: kernels.norm(rows, weight, eps)
    width = len(weight)

    def torchs(rows: Tensor) -> Tensor:
        scaled = functional.rms_norm(rows.to(torch.float32), (width,), None, eps)
        return weight * scaled.to(rows.dtype)

    return torchs
