"""Where the bytes of a sample are: DeepSpec's target cache, version 2, and the checksums we keep beside it.

A sample lies in one shard, its five parts back to back, little-endian: input_ids int32[S], attention_mask uint8[S],
loss_mask uint8[S], target_hidden_states bf16[S, L·H] (L layers of H each, in the order of target_layer_ids) and
target_last_hidden_states bf16[S, H] (after the final norm).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

MANIFEST_FILE = "manifest.json"
INDEX_FILE = "samples.idx"
CHECKS_FILE = "samples.crc"

PARTS = ("input_ids", "attention_mask", "loss_mask", "target_hidden_states", "target_last_hidden_states")
INDEX = np.dtype([("sample_id", "<u8"), ("shard_id", "<u4"), ("seq_len", "<u4"), *((part, "<u8") for part in PARTS)])
"""A record of ``samples.idx``: the parts' offsets are from the shard's beginning, in bytes."""

CHECKS = np.dtype([("key", "<u8"), *((part, "<u4") for part in PARTS), ("record", "<u4")])
"""A record of ``samples.crc``, at the place of the sample's in ``samples.idx``.

``key`` is the number the sample's writer knows it by; the parts are their CRC-32, and ``record`` that of the index
record without its sample_id (which is the record's place) and of what comes before it here.
"""

assert INDEX.itemsize == 56, INDEX
assert CHECKS.itemsize == 32, CHECKS

Record = Any  # numpy.void of one of the two types above: numpy cannot type its fields


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sequence and what the target thought at each of its S positions. bf16 is held as its bits.

    Arrays from a cache are read-only views of its shard, but for the first three, which are copies.
    """

    key: int  # the number its writer knows it by; samples lie in the order of their keys
    input_ids: NDArray[np.int32]  # [S]
    attention_mask: NDArray[np.uint8]  # [S], 1 everywhere
    loss_mask: NDArray[np.uint8]  # [S], 1 where the assistant's tokens are
    hidden: NDArray[np.uint16]  # [S, L·H]
    last_hidden: NDArray[np.uint16]  # [S, H]
    sample_id: int = -1  # its place in the cache; -1 while it is in none

    @property
    def parts(self) -> tuple[NDArray[Any], ...]:
        """In the order of PARTS."""
        return self.input_ids, self.attention_mask, self.loss_mask, self.hidden, self.last_hidden


@dataclass(frozen=True, slots=True)
class Shape:
    """What all samples of a cache have in common."""

    layers: int
    hidden_size: int

    def sizes(self, seq_len: int) -> tuple[int, ...]:
        """Bytes of each part."""
        hidden = 2 * self.hidden_size * seq_len
        return 4 * seq_len, seq_len, seq_len, self.layers * hidden, hidden

    def offsets(self, seq_len: int, start: int) -> tuple[int, ...]:
        """Where each part begins if the sample begins at ``start``."""
        return tuple(accumulate(self.sizes(seq_len)[:-1], initial=start))

    @property
    def token_bytes(self) -> int:
        """Bytes of one position."""
        return sum(self.sizes(1))

    def end(self, record: Record) -> int:
        """Where the last byte of an indexed sample is, plus one."""
        sizes = self.sizes(int(record["seq_len"]))
        return max(int(record[part]) + size for part, size in zip(PARTS, sizes, strict=True))


def shard_name(shard_id: int) -> str:
    """File name of a shard."""
    return f"shard-{shard_id:05d}.bin"


def index_record(key: int, shard_id: int, seq_len: int, offsets: Sequence[int]) -> Record:
    """A record of ``samples.idx``."""
    return np.array((key, shard_id, seq_len, *offsets), INDEX)[()]


def checks_record(key: int, sums: Sequence[int], index: Record) -> Record:
    """A record of ``samples.crc`` for the sample at an index record."""
    record = np.array((key, *sums, 0), CHECKS)
    record["record"] = record_sum(index, record[()])
    return record[()]


def record_sum(index: Record, checks: Record) -> int:
    """CRC-32 of a pair of records, without the sample_id of the one and the sum of the other."""
    return zlib.crc32(checks.tobytes()[:-4], zlib.crc32(index.tobytes()[8:]))
