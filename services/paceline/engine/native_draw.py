"""Tokens of rows whose vocabulary is not cut, drawn by the engine's own kernels: ``sampling.sample``'s race."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.engine.native import Kernels
from paceline.speculation.sampling import Row, require_finite

_WORD = 0xFFFFFFFF


class NativeDraw:
    """See ``sampling.DrawWhole``."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """logits: [R, V] of the kernels' dtype → int64 [R]. Raises FloatingPointError as ``sample`` does."""
        assert logits.dtype == self._kernels.dtype, logits.dtype
        places = [(row.params.seed & _WORD, row.params.seed >> 32, row.position, row.choice) for row in rows]
        tokens = self._kernels.draw(
            logits.contiguous(),
            torch.tensor(places, dtype=torch.int64),
            torch.tensor([row.params.temperature for row in rows], dtype=torch.float64),
        )
        if int(tokens.min()) < 0:
            require_finite(logits.amax(dim=1))
        return tokens
