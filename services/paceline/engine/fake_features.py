"""The hidden states of a fake engine, and the context features kept beside its pages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from paceline.engine.interface import FeatureRows, Hidden, Slice, Wanted
from paceline.engine.projection import Projection, Projector
from paceline.engine.taps import require_layers
from paceline.speculation.errors import InvalidRequest

LAYERS = 4
HIDDEN_SIZE = 8
DTYPE = torch.bfloat16
_CACHED = 65536


class FakeStates:
    """Hidden states that are a function of the last few tokens, as a fake's logits are.

    Args:
        digest: (what for, tokens) → bytes.
        order: how many tokens.
        projectors: raises InvalidRequest for one that doesn't fit.
    """

    def __init__(
        self, digest: Callable[[str, tuple[int, ...]], bytes], order: int, projectors: Sequence[Projector]
    ) -> None:
        self._digest, self._order = digest, order
        self._projections = {each.fingerprint: _projection(each) for each in projectors}
        self._written: dict[int, tuple[int, ...]] = {}  # the tokens each slot's features are a function of
        self._cached = functools.lru_cache(_CACHED)(self._features)

    @property
    def row_bytes(self) -> dict[str, int]:
        """By projector, the size of one position's features."""
        return {name: each.projector.width * DTYPE.itemsize for name, each in self._projections.items()}

    def state(self, layer: int, tokens: Sequence[int]) -> Tensor:
        """A layer's output after ``tokens``, [HIDDEN_SIZE]."""
        digest = self._digest(f"layer {layer}", self._context(tokens))
        return torch.tensor([byte / 128 - 1 for byte in digest[:HIDDEN_SIZE]], dtype=DTYPE)

    def hidden(self, piece: Slice, wanted: Wanted, tokens: Sequence[int]) -> Hidden | None:
        """What a slice of a step that ran is told of its rows; ``tokens`` are the session's."""
        if not piece.hidden:
            return None
        ends = range(piece.start + 1, piece.end + 1)
        rows = [torch.cat([self.state(layer, tokens[:end]) for layer in wanted.layers]) for end in ends]
        last = torch.stack([self.state(LAYERS, tokens[:end]) for end in ends]) if wanted.last else None
        return Hidden(torch.stack(rows), last)

    def write(self, slot: int, tokens: Sequence[int]) -> None:
        """The step wrote to a slot; ``tokens`` are the session's up to it, or the last of them."""
        self._written[slot] = self._context(tokens)

    def read(self, rows: FeatureRows) -> bytes:
        """Features of slots that were written to."""
        return b"".join(self._cached(rows.projector, self._written[slot]) for slot in rows.slots)

    def features(self, projector: str, tokens: Sequence[int]) -> bytes:
        """The features of the last of some tokens."""
        return self._cached(projector, self._context(tokens))

    def _features(self, projector: str, context: tuple[int, ...]) -> bytes:
        projection = self._projections[projector]
        states = torch.cat([self.state(layer, context) for layer in projection.projector.layers])
        return projection(states[None]).view(torch.uint8).numpy().tobytes()

    def _context(self, tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(tokens[-self._order :])


def _projection(projector: Projector) -> Projection:
    require_layers(projector.layers, LAYERS, "projectors")
    inputs = len(projector.layers) * HIDDEN_SIZE
    if projector.weight.shape[1] != inputs:
        raise InvalidRequest("projectors", expected=f"a projector of {inputs} inputs", got=projector.weight.shape[1])

    def make(weight: Tensor, bias: Tensor | None) -> torch.nn.Module:
        assert bias is None
        outputs, inputs = weight.shape
        linear = torch.nn.Linear(inputs, outputs, bias=False, dtype=DTYPE).requires_grad_(False)
        linear.weight.copy_(weight)
        return linear

    return Projection(projector, make, None, torch.empty(0, dtype=DTYPE))
