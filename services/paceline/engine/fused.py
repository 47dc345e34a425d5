"""Decoder layers run as few operations: norm, one product for q, k and v, rotation and attention, one product, norm,
one product for gate and up, silu(gate) · up, one product.

That is the layer of Llama and its many relatives. A layer is taken for one by its parts, and replaced only if it then
computes what it did before, on the inputs of a real forward pass; every other layer stays as transformers runs it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paceline.engine.attention import current
from paceline.engine.kv_store import KVStore, LayerShape
from paceline.engine.linear import Linear, MakeLinear, NativeLinear, linear_weights
from paceline.engine.native import MAX_KEY_DIM, DecoderArguments, Kernels, LayerArguments
from paceline.engine.native_attention import NativeAttention

_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_NORMS = {"input_layernorm", "post_attention_layernorm"}


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMSNorm."""

    weight: Tensor
    eps: float


class FusedLayer(nn.Module):
    """A Llama layer over the engine's kernels. Its products are whatever ``make`` makes."""

    def __init__(self, layer: nn.Module, arguments: LayerArguments, kernels: Kernels, make: MakeLinear) -> None:
        """``layer`` must have passed ``looks_like_llama``; its weights are copied."""
        super().__init__()
        parts: Any = layer
        self._index = int(parts.self_attn.layer_idx)
        self._arguments = arguments
        self._kernels = kernels
        self._norms = [_norm(parts.input_layernorm), _norm(parts.post_attention_layernorm)]
        attention, mlp = parts.self_attn, parts.mlp
        self._inward = _together(make, attention.q_proj, attention.k_proj, attention.v_proj)
        self._outward: Linear = make(*_weights(attention.o_proj))  # type: ignore[assignment]
        self._widen = _together(make, mlp.gate_proj, mlp.up_proj)
        self._narrow: Linear = make(*_weights(mlp.down_proj))  # type: ignore[assignment]

    def forward(self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **options: Any) -> Tensor:
        """hidden_states: [1, N, width]; position_embeddings: cos, sin [1, N, dim] → [1, N, width]."""
        del options  # masks and caches, which are attention's affair
        attention = current()
        assert isinstance(attention, NativeAttention), attention
        rows = hidden_states[0]
        cos, sin = position_embeddings
        packed = self._inward(self._norm(0, rows))
        attended = attention.attend_rotating(self._index, self._arguments, packed, cos, sin)
        rows = self._outward.added(attended, rows)
        both = self._widen(self._norm(1, rows))
        return self._narrow.added(self._kernels.gate(both), rows)[None]

    def decoder_arguments(self) -> DecoderArguments | None:
        """What the kernels need to run the layer themselves; None if its products are not theirs."""
        linears = [self._inward, self._outward, self._widen, self._narrow]
        arguments = [linear.arguments() for linear in linears if isinstance(linear, NativeLinear)]
        if len(arguments) < len(linears):
            return None
        first, second = self._norms
        return DecoderArguments(
            self._arguments, *arguments,
            (first.weight.data_ptr(), second.weight.data_ptr()), (first.eps, second.eps),
            len(first.weight), self._narrow.in_features,
        )  # fmt: skip

    @property
    def index(self) -> int:
        """Which layer of the KV store is its."""
        return self._index

    def _norm(self, which: int, rows: Tensor) -> Tensor:
        norm = self._norms[which]
        return self._kernels.norm(rows, norm.weight, norm.eps)


class Taker(Protocol):
    """Listens to the outputs of some layers; -1 is what the first one is given."""

    @property
    def wanted(self) -> frozenset[int]: ...

    def take(self, layer: int, states: Tensor) -> None:
        """A layer's output [rows, width], of which the next layer will not leave a trace."""
        ...


class FusedStack(nn.Module):
    """All layers of a model in one call of the kernels. Computes what they would one by one, to the bit."""

    def __init__(self, layers: list[FusedLayer], kernels: Kernels) -> None:
        """The layers' products must all be native."""
        super().__init__()
        self._layers = layers  # whose weights the arguments point to
        found = [layer.decoder_arguments() for layer in layers]
        arguments = [each for each in found if each is not None]
        assert len(arguments) == len(layers) > 0
        self._kernels = kernels
        self._decoders = (DecoderArguments * len(arguments))(*arguments)
        self._room = max(_room(each) for each in arguments)
        self._bound: KVStore | None = None
        self.tapped: Taker | None = None  # who listens to the layers' outputs, if somebody does

    def forward(self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **options: Any) -> Tensor:
        """See FusedLayer."""
        del options
        attention = current()
        assert isinstance(attention, NativeAttention), attention
        self._bind(attention.store)
        rows = hidden_states[0].clone()
        cos, sin = position_embeddings
        room = rows.new_empty(len(rows), self._room)
        assert self._kernels.layers is not None
        start = 0
        for end in self._stops():
            first = ctypes.addressof(self._decoders) + start * ctypes.sizeof(DecoderArguments)
            self._kernels.layers(
                first, end - start, attention.step_address, rows.data_ptr(),
                cos.data_ptr(), sin.data_ptr(), room.data_ptr(), len(rows),
            )  # fmt: skip
            start = end
            if self.tapped is not None:
                self.tapped.take(end - 1, rows)
        return rows[None]

    def _stops(self) -> list[int]:
        """How many layers have run whenever somebody is told: all of them, in the end."""
        wanted = {layer + 1 for layer in self.tapped.wanted} if self.tapped is not None else set()
        return sorted(wanted | {len(self._decoders)})

    def _bind(self, store: KVStore) -> None:
        if self._bound is store:
            return
        for layer, decoder in zip(self._layers, self._decoders, strict=True):
            decoder.attention.keys = store.keys[layer.index].data_ptr()
            decoder.attention.values = store.values[layer.index].data_ptr()
        self._bound = store


def looks_like_llama(layer: nn.Module, shape: LayerShape, options: dict[str, Any]) -> bool:
    """Whether a layer has a Llama layer's parts and no others."""
    parts: Any = layer
    if _children(layer) != _LAYER or _children(parts.self_attn) != _ATTENTION or _children(parts.mlp) != _MLP:
        return False
    key_dim, value_dim = shape.key_dim, shape.value_dim
    linears = [getattr(parts.self_attn, name) for name in _ATTENTION]
    linears += [getattr(parts.mlp, name) for name in _MLP - {"act_fn"}]
    return (
        type(parts.mlp.act_fn).__name__ in {"SiLU", "SiLUActivation"}
        and all(type(linear) is nn.Linear for linear in linears)
        and all(_is_norm(getattr(parts, name)) for name in _NORMS)
        and key_dim == value_dim <= MAX_KEY_DIM
        and key_dim % 2 == 0
        and options.get("softcap") is None
    )


@dataclass(frozen=True, slots=True)
class Witness:
    """What a layer was given and gave in one forward pass."""

    inputs: Tensor
    position_embeddings: tuple[Tensor, Tensor]
    output: Tensor

    def agrees(self, output: Tensor) -> bool:
        """Whether another output differs by rounding only: by little of the output itself, whose bits are few, and by
        little of what the layer adds to its input."""
        exact = self.output.dtype == torch.float32
        expected, added = self.output.float(), (self.output.float() - self.inputs.float())
        allowed = expected.abs() * (1e-5 if exact else 2**-7) + added.square().mean().sqrt() * (1e-4 if exact else 0.1)
        return bool(((output.float() - expected).abs() <= allowed).all())


@contextmanager
def witnessing(layers: list[nn.Module]) -> Iterator[dict[int, Witness]]:
    """Note what each layer is given and gives, by its place in the list, in a forward pass made inside."""
    found: dict[int, Witness] = {}

    def note(place: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs = args[0] if args else kwargs.get("hidden_states")
        embeddings = kwargs.get("position_embeddings")
        if isinstance(inputs, Tensor) and isinstance(output, Tensor) and isinstance(embeddings, tuple):
            found[place] = Witness(inputs.clone(), embeddings, output.clone())

    hooks = [
        layer.register_forward_hook(
            lambda _, args, kwargs, output, place=place: note(place, args, kwargs, output), with_kwargs=True
        )
        for place, layer in enumerate(layers)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _together(make: MakeLinear, *linears: nn.Module) -> Linear:
    """One layer that computes several of the same input, side by side."""
    weights, biases = zip(*(_weights(linear) for linear in linears), strict=True)
    bias = None
    if any(part is not None for part in biases):
        bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)])
    made: Linear = make(torch.cat(weights), bias)  # type: ignore[assignment]  # modules are linears here
    return made


def _weights(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    weights = linear_weights(linear)
    assert weights is not None
    return weights


def _room(decoder: DecoderArguments) -> int:
    """Elements per row layers.cpp works in."""
    shape = decoder.attention
    heads: int = 3 * shape.heads + 2 * shape.kv_heads
    return int(decoder.width + heads * shape.key_dim + 3 * decoder.inner)


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), float(module.variance_epsilon))


def _is_norm(module: nn.Module) -> bool:
    return [name for name, _ in module.named_parameters()] == ["weight"] and hasattr(module, "variance_epsilon")


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}
