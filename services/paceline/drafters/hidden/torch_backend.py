"""The network on torch alone, for any device and dtype: what ``native_backend`` computes, slower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.drafters.hidden.attention import ContextCache
from paceline.drafters.hidden.backend import Block, BlockAsk, Drafting, Piece
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.engine.pages import BlockTable


class TorchBackend:
    """See BlockBackend. The pages only count: contexts are tensors of their own.

    Args:
        network: in eval mode; used as it is.
        tokens: positions of all contexts together.
    """

    def __init__(self, network: HiddenDrafter, tokens: int) -> None:
        self._network = network
        self._table = BlockTable(tokens)
        self._caches: dict[str, ContextCache] = {}

    @property
    def dtype(self) -> torch.dtype:
        return self._network.dtype

    @property
    def least(self) -> int:
        return 0

    def reserve(self, session_id: str, positions: int) -> bool:
        return self._table.reserve(session_id, positions) is not None

    def free(self, session_id: str) -> None:
        self._table.free(session_id)
        self._caches.pop(session_id, None)

    def append(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            cache = self._caches.setdefault(piece.session_id, ContextCache())
            assert piece.start == len(cache), (piece.session_id, piece.start, len(cache))
            positions = torch.arange(piece.start, piece.start + len(piece.features))
            cache.append(*self._network.context(piece.features, positions))

    def begin(self, asks: Sequence[BlockAsk]) -> Drafting:
        return Block(self, asks)

    def block(self, asks: Sequence[BlockAsk]) -> Tensor:
        anchors = torch.tensor([ask.anchor for ask in asks])
        positions = torch.tensor([ask.position for ask in asks])
        caches = [self._caches.get(ask.session_id) or ContextCache() for ask in asks]
        return self._network.block(anchors, positions, caches).transpose(0, 1).contiguous()

    def base(self, rows: Tensor) -> Tensor:
        return self._network.head(rows)

    def biased(self, logits: Tensor, previous: Tensor) -> Tensor:
        return self._network.biased(logits, previous)

    def confidence(self, rows: Tensor, previous: Tensor) -> Tensor | None:
        found = self._network.confidence(rows, previous)
        return None if found is None else found.float().sigmoid()
