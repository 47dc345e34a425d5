"""Tokens drawn by the engine's own kernels: ``sampling.sample``'s race, over what top-k, top-p and min-p leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.engine.native import Kernels
from paceline.speculation.sampling import Row, require_finite

_WORD = 0xFFFFFFFF
_NOT_FINITE = -1  # of draw.cpp; its other answer that is no token is sampling.UNSURE


class NativeDraw:
    """See ``sampling.DrawFast``."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """logits: [R, V] of the kernels' dtype → int64 [R]. Raises FloatingPointError as ``sample`` does."""
        assert logits.dtype == self._kernels.dtype, logits.dtype
        params = [row.params for row in rows]
        places = [(row.params.seed & _WORD, row.params.seed >> 32, row.position, row.choice) for row in rows]
        options = [(each.temperature, each.top_k, each.top_p, each.min_p) for each in params]
        tokens = self._kernels.draw(
            logits.contiguous(),
            torch.tensor(places, dtype=torch.int64),
            torch.tensor(options, dtype=torch.float64),
        )
        if bool((tokens == _NOT_FINITE).any()):
            require_finite(logits.amax(dim=1))
        return tokens
