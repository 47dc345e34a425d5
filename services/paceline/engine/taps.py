"""Hidden states taken out of a forward pass, without changing a bit of it.

A layer's number is DeepSpec's: -1 is the output of the embedding, i that of decoder layer i, counted from 0. The last
hidden states are the decoder's output, after its final norm: the language modelling head on them gives the logits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from paceline.engine.fused import FusedStack
from paceline.engine.interface import Hidden, Slice, Wanted
from paceline.speculation.errors import InvalidRequest, Unsupported


class Tapped:
    """Rows of hidden states, as they come out of a forward pass under way; those after the plan's are padding.

    Args:
        layers: those wanted.
    """

    def __init__(self, layers: Collection[int]) -> None:
        self._wanted = frozenset(layers)
        self._found: dict[int, Tensor] = {}
        self._last: Tensor | None = None

    @property
    def wanted(self) -> frozenset[int]:
        """The layers wanted."""
        return self._wanted

    def take(self, layer: int, states: Tensor) -> None:
        """A layer's output, [1, N, width] or [N, width]; copied, because layers may work in place."""
        if layer in self._wanted:
            self._found[layer] = states.view(-1, states.shape[-1]).clone()

    def take_last(self, states: Tensor) -> None:
        """The decoder's output, [1, N, width]."""
        self._last = states.view(-1, states.shape[-1])

    def together(self, layers: Collection[int]) -> Tensor:
        """[N, len(layers) * width]: layers side by side, in the order given."""
        parts = [self._found[layer] for layer in layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def by_slice(self, wanted: Wanted, slices: Collection[Slice]) -> tuple[Hidden | None, ...]:
        """What is returned with a step: of the slices that ask."""
        layers, last = self.together(wanted.layers), self._last if wanted.last else None
        found: list[Hidden | None] = []
        row = 0
        for piece in slices:
            end = row + len(piece.tokens)
            part = Hidden(layers[row:end], None if last is None else last[row:end]) if piece.hidden else None
            found.append(part)
            row = end
        return tuple(found)


class Taps:
    """The places of a model where hidden states come out."""

    def __init__(self, model: Any, layers: int) -> None:
        """Args: model: as it runs, its layers fused or not; layers: how many it has."""
        self._decoder: nn.Module = model.get_decoder()
        self._count = layers
        found = getattr(self._decoder, "layers", None)
        self._layers = list(found) if isinstance(found, nn.ModuleList) else []

    def require(self, layers: Collection[int], name: str) -> None:
        """Raises InvalidRequest for layers that are not there, Unsupported for a model that keeps them elsewhere;
        ``name`` is the setting at fault."""
        require_layers(layers, self._count, name)
        if not self._layers:
            got = f"hidden states of {type(self._decoder).__name__}"
            raise Unsupported("model", got=got, hint="use a model whose decoder keeps its layers in a list, as Llama's")

    @contextmanager
    def tapping(self, layers: Collection[int]) -> Iterator[Tapped]:
        """Listen to a forward pass made inside."""
        tapped = Tapped(layers)
        stack = self._layers[0] if self._layers else None
        hooks = [self._decoder.register_forward_hook(lambda _, args, output: tapped.take_last(_states(output)))]
        if isinstance(stack, FusedStack):
            stack.tapped = tapped
        else:
            hooks += [_listen(self._layers, layer, tapped) for layer in sorted(tapped.wanted)]
        try:
            yield tapped
        finally:
            for hook in hooks:
                hook.remove()
            if isinstance(stack, FusedStack):
                stack.tapped = None


def require_layers(layers: Collection[int], count: int, name: str) -> None:
    """Raises InvalidRequest, naming the setting, unless these are ascending layers of a model that has ``count``."""
    in_order = list(layers) == sorted(set(layers))
    if not layers or not in_order or min(layers) < -1 or max(layers) >= count:
        expected = f"different layers in ascending order, between -1 (the embedding) and {count - 1}"
        raise InvalidRequest(name, expected=expected, got=list(layers))


def _listen(layers: list[nn.Module], layer: int, tapped: Tapped) -> Any:
    if layer < 0:
        return layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: tapped.take(layer, args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    return layers[layer].register_forward_hook(lambda _, args, output: tapped.take(layer, _states(output)))


def _states(output: Any) -> Tensor:
    """The hidden states in what a layer or a decoder returns."""
    if isinstance(output, Tensor):
        return output
    states: Tensor = output[0]
    return states
