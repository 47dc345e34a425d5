"""Reading a whole cache to find what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from paceline.cache.target.errors import CorruptSample
from paceline.cache.target.reader import TargetCache


@dataclass(frozen=True, slots=True)
class ShardFault:
    """A shard that does not hold what the index says."""

    name: str
    what: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was found."""

    samples: int
    size: int  # bytes of all samples
    has_checksums: bool
    corrupt: tuple[CorruptSample, ...]  # the samples that are lost, and why
    shards: tuple[ShardFault, ...]  # those that are missing or too short

    @property
    def sound(self) -> bool:
        return not self.corrupt and not self.shards


def verify(cache: TargetCache, progress: Callable[[int], None] = lambda size: None) -> Report:
    """Read every sample once, shard by shard.

    Args:
        cache: opened with ``check``.
        progress: told of each sample's bytes.
    """
    shape, corrupt = cache.manifest.shape, []
    for sample_id in np.lexsort((cache.starts, cache.shard_ids)):
        try:
            cache[int(sample_id)]
        except CorruptSample as error:
            corrupt.append(error)
        progress(int(cache.lengths[sample_id]) * shape.token_bytes)
    return Report(
        samples=len(cache),
        size=int(cache.lengths.sum(dtype=np.int64)) * shape.token_bytes,
        has_checksums=cache.has_checksums,
        corrupt=tuple(sorted(corrupt, key=lambda each: each.sample_id)),
        shards=tuple(_shard_faults(cache)),
    )


def _shard_faults(cache: TargetCache) -> list[ShardFault]:
    faults = []
    for shard_id, name in enumerate(cache.manifest.shards):
        path, needed = cache.shard_path(shard_id), cache.shard_end(shard_id)
        if not path.exists():
            faults.append(ShardFault(name, "it is missing"))
        elif path.stat().st_size < needed:
            faults.append(ShardFault(name, f"it has {path.stat().st_size} bytes, and its samples end at {needed}"))
    return faults
