"""The tensors behind the pages: one K and one V per layer, allocated once. Page 0 stays zero.

Beside them, one vector of context features per position and projector: whoever shares or loses a page shares or loses
its features with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.engine.interface import KvRequest
from paceline.engine.pages import PAGE, BlockTable


@dataclass(frozen=True, slots=True)
class LayerShape:
    """KV geometry of one attention layer."""

    kv_heads: int
    key_dim: int
    value_dim: int


class KVStore:
    """K and V of every layer: [(pages + 1) * PAGE, heads * dim] each, in the model's dtype, allocated here and never
    again."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        table: BlockTable,
        *,
        dtype: torch.dtype,
        device: torch.device,
        widths: Mapping[str, int] | None = None,
    ) -> None:
        """Args: widths: numbers per position of each kind of features, by the projector's fingerprint."""
        slots = (table.total + 1) * PAGE

        def store(dims: int) -> Tensor:
            return torch.zeros(slots, dims, dtype=dtype, device=device)

        self.shapes = tuple(shapes)
        self.keys = [store(shape.kv_heads * shape.key_dim) for shape in shapes]
        self.values = [store(shape.kv_heads * shape.value_dim) for shape in shapes]
        self.features = {name: store(width) for name, width in (widths or {}).items()}
        self._table = table
        self._stale: deque[int] = deque()  # handed out, not yet zeroed; append and popleft are atomic

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, the page of zeros included."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values, *self.features.values()))

    def reserve(self, session_id: str, max_len: int) -> bool:
        """Pages for a session; they are zeroed by ``clear``. Pure bookkeeping: any thread may call it."""
        fresh = self._table.reserve(session_id, max_len)
        if fresh is None:
            return False
        self._stale.extend(fresh)
        return True

    def admit(self, request: KvRequest, salt: bytes) -> int | None:
        """See BlockTable.admit; leading positions that need not be computed. As ``reserve``, pure bookkeeping."""
        admission = self._table.admit(request, salt)
        if admission is None:
            return None
        self._stale.extend(admission.fresh)
        return admission.reused

    def clear(self) -> None:
        """Zero the pages handed out since the last step; to be called before a step, in the engine's thread.

        Masked positions take part in products with weight 0: a former owner's inf or NaN would come through, and one
        session's bits would depend on another's past. Shared pages are never among them: whoever is given a page to
        write to is its only holder, and it is zeroed before the step that writes to it first. Features are left alone:
        nobody reads a position's before they are written.
        """
        fresh = [self._stale.popleft() for _ in range(len(self._stale))]
        if not fresh:
            return
        index = torch.tensor(fresh, device=self.keys[0].device)
        for tensor in (*self.keys, *self.values):
            tensor.view(-1, PAGE * tensor.shape[1]).index_fill_(0, index, 0)

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store rows. slots: int64 [n]; key: [n, kv_heads, key_dim]; value: [n, kv_heads, value_dim]."""
        self.keys[layer].index_copy_(0, slots, key.reshape(len(slots), -1))
        self.values[layer].index_copy_(0, slots, value.reshape(len(slots), -1))

    @staticmethod
    def gather(store: Tensor, pages: Tensor, *, block: int, heads: int) -> Tensor:
        """float32 copies of pages, per head. pages: int64 [blocks * block / PAGE] → [blocks, heads, block, dim]."""
        rows = store.view(-1, PAGE * store.shape[1]).index_select(0, pages)
        by_head = rows.view(-1, block, heads, store.shape[1] // heads).transpose(1, 2)
        return torch.empty(by_head.shape, dtype=torch.float32, device=store.device).copy_(by_head)
