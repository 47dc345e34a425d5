"""The network on the engine's own kernels: contexts on pages, all layers of a pass in one call.

A drafter's layer is a Llama layer whose heads are normed before rotation, and whose rows see the whole of their block.
Block rows are written behind the context, where the next context positions will overwrite them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.drafters.hidden.backend import Block, BlockAsk, Drafting, Piece
from paceline.drafters.hidden.layers import DrafterLayer, RMSNorm, rotation
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.engine.batch import RAGGED_PAGES
from paceline.engine.kv_store import KVStore, LayerShape
from paceline.engine.linear import NativeLinear
from paceline.engine.native import (
    MAX_KEY_DIM,
    DecoderArguments,
    InjectedArguments,
    Kernels,
    LayerArguments,
    StepArguments,
    kernels,
)
from paceline.engine.pages import PAGE, BlockTable

_TILE = 8  # context rows of a session one thread writes


def kernels_for(network: HiddenDrafter) -> Kernels | None:
    """The kernels for a network, if there are any here and it has their shapes.

    On any processor that has products: a block has few rows, so its weights' way through memory is what it costs.
    """
    config = network.config
    found = kernels(network.dtype, network.embed_tokens.device)
    widths = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    even = all(width % 2 == 0 for width in (*widths, config.markov_rank))
    return found if found is not None and found.has_products and even and config.head_dim <= MAX_KEY_DIM else None


@dataclass(frozen=True, slots=True)
class _Rows:
    """Consecutive positions of one session that a call works on."""

    session_id: str
    start: int
    count: int


class NativeBackend:
    """See BlockBackend.

    Args:
        network: its weights are copied, but for the embedding.
        tokens: positions of all contexts together.
    """

    def __init__(self, network: HiddenDrafter, kernels: Kernels, tokens: int) -> None:
        config = network.config
        self._config, self._network, self._kernels = config, network, kernels
        self._table = BlockTable(tokens)
        shape = LayerShape(config.num_key_value_heads, config.head_dim, config.head_dim)
        count = config.num_hidden_layers
        self._store = KVStore([shape] * count, self._table, dtype=network.dtype, device=torch.device("cpu"))
        self._linears: list[NativeLinear] = []  # whose weights the arguments point to
        layers = [layer for layer in network.layers if isinstance(layer, DrafterLayer)]
        attentions = [self._attention(index, layer) for index, layer in enumerate(layers)]
        self._decoders = (DecoderArguments * count)(
            *(self._decoder(at, layer) for at, layer in zip(attentions, layers, strict=True))
        )
        self._injected = (InjectedArguments * count)(
            *(self._injection(at, layer) for at, layer in zip(attentions, layers, strict=True))
        )
        self._head = NativeLinear(network.lm_head.to(network.dtype), None, kernels=kernels)
        markov = network.markov_head
        self._markov = None if markov is None else NativeLinear(markov.markov_w2.weight, None, kernels=kernels)
        self._masked = network.embed_tokens[config.mask_token_id].to(network.dtype).expand(config.block_size, -1)
        self._angles = rotation(torch.arange(0), config.head_dim, config.rope_theta, network.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self._network.dtype

    @property
    def least(self) -> int:
        return 0

    def reserve(self, session_id: str, positions: int) -> bool:
        return self._store.reserve(session_id, positions)

    def free(self, session_id: str) -> None:
        self._table.free(session_id)

    def append(self, pieces: Sequence[Piece]) -> None:
        rows = [_Rows(piece.session_id, piece.start, len(piece.features)) for piece in pieces]
        features = torch.cat([piece.features for piece in pieces]) if len(pieces) > 1 else pieces[0].features
        features = features.to(self.dtype).contiguous()
        step, cos, sin = self._step(rows, _TILE)
        config = self._config
        room = features.new_empty(len(features), 2 * config.num_key_value_heads * config.head_dim)
        assert self._kernels.inject is not None
        self._kernels.inject(
            ctypes.addressof(self._injected), len(self._injected), step.address, features.data_ptr(),
            cos.data_ptr(), sin.data_ptr(), room.data_ptr(), len(features), config.hidden_size,
        )  # fmt: skip

    def begin(self, asks: Sequence[BlockAsk]) -> Drafting:
        return Block(self, asks)

    def block(self, asks: Sequence[BlockAsk]) -> Tensor:
        config, size = self._config, self._config.block_size
        step, cos, sin = self._step([_Rows(ask.session_id, ask.position, size) for ask in asks], size)
        rows = self._masked.repeat(len(asks), 1)
        rows[::size] = self._network.embed_tokens[[ask.anchor for ask in asks]].to(self.dtype)
        heads = (3 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        room = rows.new_empty(len(rows), config.hidden_size + heads + 3 * config.intermediate_size)
        assert self._kernels.layers is not None
        self._kernels.layers(
            ctypes.addressof(self._decoders), len(self._decoders), step.address, rows.data_ptr(),
            cos.data_ptr(), sin.data_ptr(), room.data_ptr(), len(rows),
        )  # fmt: skip
        predicting = rows.view(len(asks), size, -1)[:, config.first_row :].transpose(0, 1).contiguous()
        norm = self._network.norm
        return self._kernels.norm(predicting.view(-1, config.hidden_size), norm.weight, norm.eps).view_as(predicting)

    def base(self, rows: Tensor) -> Tensor:
        out: Tensor = self._head(rows)
        return out

    def biased(self, logits: Tensor, previous: Tensor) -> Tensor:
        markov = self._network.markov_head
        if markov is None or self._markov is None:
            return logits
        return self._markov.added(markov.markov_w1.weight[previous], logits)

    def confidence(self, rows: Tensor, previous: Tensor) -> Tensor | None:
        found = self._network.confidence(rows, previous)
        return None if found is None else found.float().sigmoid()

    def _step(self, rows: Sequence[_Rows], tile: int) -> tuple[_Step, Tensor, Tensor]:
        """Where rows lie, and what they are rotated by."""
        self._store.clear()
        positions: list[int] = []
        tiles: list[list[int]] = []
        pages: list[int] = []
        for each in rows:
            end = each.start + each.count
            held = self._table.holding(each.session_id).pages[: -(-end // PAGE)]
            assert len(held) * PAGE >= end, (each, len(held))
            for offset in range(0, each.count, tile):
                count = min(tile, each.count - offset)
                tiles.append([len(positions) + offset, count, each.start + offset, len(pages)])
            positions += range(each.start, end)
            pages += held + [0] * (-len(held) % RAGGED_PAGES)
        cosines, sines = self._rotation(max(positions) + 1)
        index = torch.tensor(positions)
        return _Step(tiles, pages), cosines[index].squeeze(1), sines[index].squeeze(1)

    def _rotation(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all positions there were so far, and somewhat more."""
        if len(self._angles[0]) < length:
            config = self._config
            positions = torch.arange(2 * length)
            self._angles = rotation(positions, config.head_dim, config.rope_theta, self.dtype)
        return self._angles

    def _linear(self, *weights: Tensor) -> Any:
        linear = NativeLinear(torch.cat(weights), None, kernels=self._kernels)
        self._linears.append(linear)
        return linear.arguments()

    def _attention(self, index: int, layer: DrafterLayer) -> LayerArguments:
        part = layer.self_attn
        return LayerArguments(
            self._store.keys[index].data_ptr(), self._store.values[index].data_ptr(), part.heads, part.kv_heads,
            part.head_dim, part.head_dim, 0, part.head_dim**-0.5, 0.0, part.q_norm.weight.data_ptr(),
            part.k_norm.weight.data_ptr(), part.q_norm.eps, 1,
        )  # fmt: skip

    def _decoder(self, attention: LayerArguments, layer: DrafterLayer) -> DecoderArguments:
        part, mlp = layer.self_attn, layer.mlp
        norms: list[RMSNorm] = [layer.input_layernorm, layer.post_attention_layernorm]
        first, second = norms
        return DecoderArguments(
            attention,
            self._linear(part.q_proj.weight, part.k_proj.weight, part.v_proj.weight), self._linear(part.o_proj.weight),
            self._linear(mlp.gate_proj.weight, mlp.up_proj.weight), self._linear(mlp.down_proj.weight),
            (first.weight.data_ptr(), second.weight.data_ptr()), (first.eps, second.eps),
            self._config.hidden_size, self._config.intermediate_size,
        )  # fmt: skip

    def _injection(self, attention: LayerArguments, layer: DrafterLayer) -> InjectedArguments:
        part = layer.self_attn
        return InjectedArguments(attention, self._linear(part.k_proj.weight, part.v_proj.weight))


class _Step:
    """``StepArguments`` and the tensors they point to."""

    def __init__(self, tiles: list[list[int]], pages: list[int]) -> None:
        self._tiles, self._pages = torch.tensor(tiles), torch.tensor(pages)
        self._arguments = StepArguments(
            self._tiles.data_ptr(), self._pages.data_ptr(), len(tiles), torch.get_num_threads()
        )
        self.address = ctypes.addressof(self._arguments)
