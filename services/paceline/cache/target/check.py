"""Whether the bytes of a stored sample are those that were written."""

from __future__ import annotations

import mmap
import zlib
from dataclasses import dataclass
from pathlib import Path

from paceline.cache.target.layout import PARTS, Record, Shape, record_sum

_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a sample: the first thing found."""

    part: str
    what: str


def fault(path: Path, shape: Shape, index: Record, checks: Record | None) -> Fault | None:
    """Read one sample; None if nothing is wrong. Without ``checks`` only whether it is there."""
    try:
        size = path.stat().st_size
        if (found := misplaced(size, shape, index, checks)) is not None or checks is None:
            return found
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return altered(content, shape, index, checks)
    except OSError as error:
        return Fault("shard", f"cannot be read: {error.strerror}")


def misplaced(size: int, shape: Shape, index: Record, checks: Record | None) -> Fault | None:
    """Whether a sample's records cannot be right for a shard of ``size`` bytes."""
    if checks is not None and record_sum(index, checks) != int(checks["record"]):
        return Fault("index", "its record and checksum differ")
    if not index["seq_len"]:
        return Fault("index", "it has no tokens")
    for part, length in zip(PARTS, shape.sizes(int(index["seq_len"])), strict=True):
        if int(index[part]) + length > size:
            return Fault(part, f"ends at byte {int(index[part]) + length} of a shard of {size}: truncated")
    return None


def altered(content: mmap.mmap, shape: Shape, index: Record, checks: Record) -> Fault | None:
    """Whether a part's bytes have another sum than the one that was written."""
    with memoryview(content) as view:
        for part, length in zip(PARTS, shape.sizes(int(index["seq_len"])), strict=True):
            start, total = int(index[part]), 0
            for begin in range(start, start + length, _CHUNK_BYTES):
                with view[begin : min(begin + _CHUNK_BYTES, start + length)] as chunk:
                    total = zlib.crc32(chunk, total)
            if total != int(checks[part]):
                return Fault(part, f"checksum {total:08x}, written as {int(checks[part]):08x}")
    return None
