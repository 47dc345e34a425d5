"""A plan laid out as tensors: flattened rows, and the query tiles attention runs on.

A *query tile* is a fixed number of consecutive rows of one session, padded by repeating its last row. A *bucket* is
tiles whose KV spans the same number of blocks; it bounds the memory attention needs at once. None of this changes a
bit of any row (see ``attention``): it only decides what is computed together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paceline.engine.interface import StepPlan
from paceline.engine.pages import PAGE, BlockTable

KV_BLOCK = 128  # KV positions per product: the reduction over V runs block by block
PAGES_PER_BLOCK = KV_BLOCK // PAGE
RAGGED_PAGES = 4  # per block of the native kernels (attention.cpp)


def padded_blocks(kv_len: int) -> int:
    """Blocks a KV length is padded to: 1 … 8, 10, 12, 14, 16, 20, 24 … so that few buckets hold every length."""
    need = -(-kv_len // KV_BLOCK)
    step = max(1, 1 << max(0, (need - 1).bit_length() - 3))
    return -(-need // step) * step


@dataclass(slots=True)
class Bucket:
    """Query tiles attended to in one go."""

    blocks: int  # KV blocks each tile spans
    rows: Tensor  # int64 [tiles * query_tile], rows of the step; a tile's padding repeats its last row
    positions: Tensor  # int64 [tiles, query_tile]
    pages: Tensor  # int64 [tiles * blocks * PAGES_PER_BLOCK]
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor:
        """Additive mask, 0 where a row may look and -inf elsewhere: [tiles, 1, 1, query_tile, blocks, KV_BLOCK].

        ``window`` counts the latest positions a row sees, itself included; None is all of them. Kept for the step.
        """
        if window not in self._masks:
            span = self.blocks * KV_BLOCK
            key = torch.arange(span, device=self.positions.device)
            query = self.positions[..., None]
            hidden = key > query
            if window is not None:
                hidden |= key <= query - window
            mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
            self._masks[window] = mask.view(*self.positions.shape, self.blocks, KV_BLOCK)[:, None, None]
        return self._masks[window]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Query tiles as the native kernels want them: each with its session's pages, at any KV length."""

    tiles: Tensor  # int64 [tiles, 4]: first row, rows, position of the first row, where its pages begin
    pages: Tensor  # int64, of all sessions in turn, each padded with page 0 to whole blocks of RAGGED_PAGES


@dataclass(frozen=True, slots=True)
class Batch:
    """One step. N is the number of rows padded to the row tile, n those that carry a token."""

    input_ids: Tensor  # int64 [1, N]
    positions: Tensor  # int64 [1, N]
    slots: Tensor  # int64 [n], where each row's KV goes
    sampled: Tensor  # int64 [R padded to the row tile], rows whose logits are wanted; empty if none are
    samples: int  # R
    buckets: tuple[Bucket, ...] = ()
    ragged: Ragged | None = None  # instead of buckets, for the engine's own kernels


@dataclass(frozen=True, slots=True)
class Layout:
    """How steps are cut up, for one engine."""

    row_tile: int
    query_tile: int
    max_blocks: int  # (tile, KV block) pairs attention handles at once
    device: torch.device
    ragged: bool = False  # whether attention is the native kernels'

    def lay_out(self, plan: StepPlan, table: BlockTable) -> Batch:
        """The tensors of a plan whose sessions are reserved."""
        tokens = [token for piece in plan.slices for token in piece.tokens]
        positions = [position for piece in plan.slices for position in range(piece.start, piece.end)]
        slots: list[int] = []
        sampled: list[int] = []
        for piece in plan.slices:
            pages = table.holding(piece.session_id).pages
            sampled += [len(slots) + row for row in piece.logit_rows]
            slots += [pages[at // PAGE] * PAGE + at % PAGE for at in range(piece.start, piece.end)]
        padding = [0] * (-len(tokens) % self.row_tile)
        return Batch(
            input_ids=self._tensor(tokens + padding)[None],
            positions=self._tensor(positions + padding)[None],
            slots=self._tensor(slots),
            sampled=self._tensor(sampled + [0] * (-len(sampled) % self.row_tile)),
            samples=len(sampled),
            buckets=() if self.ragged else tuple(self._buckets(plan, table)),
            ragged=self._ragged(plan, table) if self.ragged else None,
        )

    def _ragged(self, plan: StepPlan, table: BlockTable) -> Ragged:
        tiles: list[list[int]] = []
        pages: list[int] = []
        row = 0
        for piece in plan.slices:
            for offset in range(0, len(piece.tokens), self.query_tile):
                count = min(self.query_tile, len(piece.tokens) - offset)
                tiles.append([row + offset, count, piece.start + offset, len(pages)])
            row += len(piece.tokens)
            pages += table.holding(piece.session_id).pages[: -(-piece.end // PAGE)]
            pages += [0] * (-len(pages) % RAGGED_PAGES)
        return Ragged(self._tensor(tiles), self._tensor(pages))

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _buckets(self, plan: StepPlan, table: BlockTable) -> Iterator[Bucket]:
        by_blocks: dict[int, list[tuple[int, int, int, int]]] = defaultdict(list)  # (slice, first row, position, rows)
        row = 0
        for number, piece in enumerate(plan.slices):
            for offset in range(0, len(piece.tokens), self.query_tile):
                count = min(self.query_tile, len(piece.tokens) - offset)
                position = piece.start + offset
                by_blocks[padded_blocks(position + count)].append((number, row + offset, position, count))
            row += len(piece.tokens)
        page_lists = [table.holding(piece.session_id).pages for piece in plan.slices]
        for blocks, tiles in by_blocks.items():
            width = blocks * PAGES_PER_BLOCK
            per_bucket = max(1, self.max_blocks // blocks)
            for first in range(0, len(tiles), per_bucket):
                yield self._bucket(tiles[first : first + per_bucket], blocks, width, page_lists)

    def _bucket(
        self, tiles: list[tuple[int, int, int, int]], blocks: int, width: int, page_lists: list[list[int]]
    ) -> Bucket:
        steps = torch.arange(self.query_tile, device=self.device)
        spec = self._tensor([list(tile) for tile in tiles])
        offsets = torch.minimum(steps, spec[:, 3:] - 1)  # [tiles, query_tile]
        numbers = sorted({tile[0] for tile in tiles})
        pages = self._tensor([(page_lists[n] + [0] * width)[:width] for n in numbers])
        where = self._tensor([numbers.index(tile[0]) for tile in tiles])
        return Bucket(
            blocks=blocks,
            rows=(spec[:, 1:2] + offsets).flatten(),
            positions=spec[:, 2:3] + offsets,
            pages=pages[where].flatten(),
        )
