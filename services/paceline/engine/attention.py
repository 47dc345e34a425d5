"""Attention whose bits depend on a row's own KV alone, as an attention function for Hugging Face models.

For every query tile (a fixed number of rows of one session) and every block of 128 KV positions:

    scores = q · kᵀ          one product of fixed shape, reduced over the head dimension only
    p      = softmax(scores) over the row's whole span, masked positions being exactly 0
    out    = Σ p · v         one product of fixed shape per block, block sums combined by a balanced tree

Products of one shape give a row the same bits whatever else is in the batch. Spans are padded to whole blocks; what
padding adds is exactly 0 and comes last (or as whole subtrees), which leaves every rounding as it was. What the kernels
at hand make of this is not taken on trust: ``probe.check_invariance`` runs at every load.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paceline.engine.batch import KV_BLOCK, Batch, Bucket
from paceline.engine.kv_store import KVStore

NAME = "paceline"  # under which transformers knows the function


class Attention(Protocol):
    """What stands behind the attention function for the duration of one forward pass."""

    def attend(
        self, layer: int, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> Tensor:
        """query: [1, heads, N, dim]; key, value: [1, kv_heads, N, dim] → [1, N, heads, value_dim]."""
        ...


_current: ContextVar[Attention] = ContextVar("paceline_attention")


@contextmanager
def attending(attention: Attention) -> Iterator[None]:
    """Route the attention calls of a forward pass made inside to ``attention``."""
    token = _current.set(attention)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Attention:
    """What attention calls are routed to now."""
    return _current.get()


def attention_function(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function Hugging Face attention modules call. A context variable carries the step, since not every model
    passes unknown arguments down."""
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # nn.Module attributes are untyped
    return current().attend(layer, module, query, key, value, attention_mask=attention_mask, **options), None


def register() -> None:
    """Make the function known to transformers. No mask is registered under its name, so models build none."""
    from transformers import AttentionInterface  # noqa: PLC0415  # transformers takes seconds to import

    AttentionInterface.register(NAME, attention_function)


class TorchAttention:
    """Attention of one step over the paged store, by torch alone."""

    def __init__(self, batch: Batch, store: KVStore) -> None:
        self._batch = batch
        self._store = store

    def attend(
        self, layer: int, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> Tensor:
        """See Attention. Padding rows come out as zeros."""
        del module
        rows = len(self._batch.slots)
        self._store.write(layer, self._batch.slots, key[0].transpose(0, 1)[:rows], value[0].transpose(0, 1)[:rows])
        heads, width = query.shape[1], self._store.shapes[layer].value_dim
        scaling = options.get("scaling")
        out = query.new_zeros(query.shape[2], heads * width)
        by_row = query[0].transpose(0, 1)  # [N, heads, dim]
        for bucket in self._batch.buckets:
            attended = self._attend_bucket(
                layer,
                bucket,
                by_row,
                scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
                softcap=options.get("softcap"),
                window=options.get("sliding_window"),
            )
            # Padding repeats a tile's last row, so rows written twice are written with the same bits.
            out.index_copy_(0, bucket.rows, attended.to(out.dtype))
        return out.view(1, -1, heads, width)

    def _attend_bucket(
        self, layer: int, bucket: Bucket, query: Tensor, *, scaling: float, softcap: float | None, window: int | None
    ) -> Tensor:
        """query: [N, heads, dim] → float32 [tiles * query_tile, heads * value_dim]."""
        shape = self._store.shapes[layer]
        tiles, tile = bucket.positions.shape
        groups = query.shape[1] // shape.kv_heads
        dims = (tiles, bucket.blocks, shape.kv_heads, groups, tile)  # T, B, H, G, t
        keys = self._store.gather(self._store.keys[layer], bucket.pages, block=KV_BLOCK, heads=shape.kv_heads)
        scores = _scores(query.index_select(0, bucket.rows), keys, dims, scaling)  # [T, B, H, G, t, 128]
        del keys
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        masked = torch.add(scores.permute(0, 2, 3, 4, 1, 5), bucket.mask(window))  # [T, H, G, t, B, 128]
        weights = torch.softmax(masked.reshape(*masked.shape[:4], -1), -1).view(masked.shape)
        values = self._store.gather(self._store.values[layer], bucket.pages, block=KV_BLOCK, heads=shape.kv_heads)
        per_block = weights.permute(0, 4, 1, 2, 3, 5).reshape(-1, groups * tile, KV_BLOCK)
        partial = torch.bmm(per_block, values.view(-1, KV_BLOCK, shape.value_dim))
        total = tree_sum(partial.view(tiles, bucket.blocks, shape.kv_heads, groups, tile, shape.value_dim))
        return total.permute(0, 3, 1, 2, 4).reshape(tiles * tile, -1)  # [T, H, G, t, D] → [T * t, H * G * D]


def _scores(query: Tensor, keys: Tensor, dims: tuple[int, int, int, int, int], scaling: float) -> Tensor:
    """query: [T * t, H * G, D]; keys: [T * B, H, 128, D] → [T, B, H, G, t, 128]."""
    tiles, blocks, kv_heads, groups, tile = dims
    width = query.shape[-1]
    by_head = query.to(torch.float32).mul(scaling).view(tiles, 1, tile, kv_heads, groups, width)
    repeated = by_head.permute(0, 1, 3, 4, 2, 5).expand(-1, blocks, -1, -1, -1, -1)
    products = torch.bmm(repeated.reshape(-1, groups * tile, width), keys.view(-1, KV_BLOCK, width).transpose(1, 2))
    return products.view(*dims, KV_BLOCK)


def tree_sum(partials: Tensor) -> Tensor:
    """Sum over dimension 1 by a balanced pairwise tree, whose shape does not depend on trailing zeros.

    An odd one out moves up a level, which is what adding a zero to it would do.
    """
    while (count := partials.shape[1]) > 1:
        even = count - count % 2
        paired = partials[:, 0:even:2] + partials[:, 1:even:2]
        partials = torch.cat([paired, partials[:, even:]], 1) if count % 2 else paired
    return partials[:, 0]
