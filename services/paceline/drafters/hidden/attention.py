"""What a block attends to: the context before its anchor, and all of its own rows (bidirectionally).

The reference implementation, for training and for any device: blocks that read one context are computed together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.drafters.hidden.layers import Attend

_SPARE = 256  # positions a cache grows by at least


class ContextCache:
    """Keys and values of one session's context, all layers; positions 0 .. len - 1 in order.

    Committed positions are appended once and stay. Drafts that want keys of their own are cut off again.
    """

    def __init__(self) -> None:
        self._store: Tensor | None = None  # [2, layers, capacity, kv heads, d]
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Take on the next N positions: [layers, N, kv heads, d] each, as ``HiddenDrafter.context`` makes them."""
        count = keys.shape[1]
        store = self._grown(keys, count)
        store[0, :, self._length : self._length + count] = keys
        store[1, :, self._length : self._length + count] = values
        self._length += count

    def cut(self, length: int) -> None:
        """Give up positions from ``length`` on."""
        assert length <= self._length, (length, self._length)
        self._length = length

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, [len, kv heads, d] each. At least one position must be there."""
        assert self._store is not None, "an empty context has no layers"
        return self._store[0, index, : self._length], self._store[1, index, : self._length]

    def _grown(self, like: Tensor, count: int) -> Tensor:
        needed = self._length + count
        if self._store is not None and self._store.shape[2] >= needed:
            return self._store
        capacity = max(needed + _SPARE, 2 * self._length)
        layers, _, heads, dim = like.shape
        store = torch.empty((2, layers, capacity, heads, dim), dtype=like.dtype, device=like.device)
        if self._store is not None:
            store[:, :, : self._length] = self._store[:, :, : self._length]
        self._store = store
        return store


def attend_blocks(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    context: tuple[Tensor, Tensor],
    *,
    block: int,
    lengths: Tensor | None = None,
) -> Tensor:
    """Attention of A blocks that read one context.

    Args:
        queries: [A * block, heads, d].
        keys, values: of the blocks' own rows, [A * block, kv heads, d].
        context: keys and values, [S, kv heads, d] each.
        lengths: [A], context positions each block sees; None lets every block see all S.

    Returns [A * block, heads, d].
    """
    rows, heads, dim = queries.shape
    blocks, kv_heads = rows // block, keys.shape[1]
    group = heads // kv_heads
    past_keys, past_values = context
    asked = (queries * dim**-0.5).view(blocks, block, kv_heads, group, dim).permute(2, 0, 3, 1, 4)  # k a g b d
    flat = asked.reshape(kv_heads, blocks * group * block, dim)
    past = torch.matmul(flat, past_keys.permute(1, 2, 0))  # k (a g b) S
    own_keys = keys.view(blocks, block, kv_heads, dim).permute(2, 0, 3, 1)  # k a d b
    own = torch.matmul(asked.reshape(kv_heads, blocks, group * block, dim), own_keys)  # k a (g b) b
    length = past.shape[-1]
    past = past.view(kv_heads, blocks, group * block, length)
    if lengths is not None:
        hidden = torch.arange(length, device=lengths.device)[None, :] >= lengths[:, None]
        past = past.masked_fill(hidden[None, :, None, :], -torch.inf)
    shares = torch.softmax(torch.cat((past, own), dim=-1), dim=-1, dtype=torch.float32).to(values.dtype)
    seen = torch.matmul(
        shares[..., :length].reshape(kv_heads, blocks * group * block, length), past_values.transpose(0, 1)
    )
    own_values = values.view(blocks, block, kv_heads, dim).permute(2, 0, 1, 3)  # k a b d
    mixed = torch.matmul(shares[..., length:], own_values) + seen.view(kv_heads, blocks, group * block, dim)
    ordered = mixed.view(kv_heads, blocks, group, block, dim).permute(1, 3, 0, 2, 4)  # a b k g d
    return ordered.reshape(rows, heads, dim)


def attend_caches(caches: Sequence[ContextCache], block: int) -> Attend:
    """Attention of one block per session, each with its own context, of any lengths. An empty context is fine."""

    def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        out = torch.empty_like(queries)
        for index, cache in enumerate(caches):
            rows = slice(index * block, (index + 1) * block)
            context = cache.layer(layer) if len(cache) else (keys[:0], values[:0])
            out[rows] = attend_blocks(queries[rows], keys[rows], values[rows], context, block=block)
        return out

    return attend
