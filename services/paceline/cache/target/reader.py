"""Reading a cache: ours, or any of DeepSpec's, version 2."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.cache.target.check import Fault, altered, misplaced
from paceline.cache.target.errors import CorruptSample
from paceline.cache.target.layout import CHECKS, CHECKS_FILE, INDEX, INDEX_FILE, PARTS, Record, Sample
from paceline.cache.target.manifest import Manifest
from paceline.speculation.errors import InvalidRequest

OPEN_SHARDS = 64


class TargetCache:
    """A sequence of samples, in memory only as far as they are looked at. Made by ``open``; can be pickled."""

    def __init__(self, folders: tuple[Path, ...], *, check: bool) -> None:
        self._folders, self._check = folders, check
        self.manifest = Manifest.load(folders[0])
        self._index = _records(folders[0] / INDEX_FILE, INDEX, self.manifest.num_samples)
        checks = folders[0] / CHECKS_FILE
        self._checks = _records(checks, CHECKS, self.manifest.num_samples) if checks.exists() else None
        self._checked = np.zeros(len(self._index), np.bool_)
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    @classmethod
    def open(cls, *folders: Path | str, check: bool = True) -> TargetCache:
        """Open a cache.

        Args:
            folders: the one with the manifest, then others to look for shards that are not there (any more).
            check: compare checksums, if the cache has them, when a sample is read for the first time.

        Raises InvalidRequest for a folder that is not a cache, or whose manifest and index don't fit together.
        """
        return cls(tuple(Path(folder) for folder in folders), check=check)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._folders, self._check)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def has_checksums(self) -> bool:
        return self._checks is not None

    @property
    def lengths(self) -> NDArray[np.uint32]:
        """[len(self)]: tokens of each sample."""
        return self._index["seq_len"]

    @property
    def shard_ids(self) -> NDArray[np.uint32]:
        """[len(self)]: which shard each sample is in."""
        return self._index["shard_id"]

    @property
    def starts(self) -> NDArray[np.uint64]:
        """[len(self)]: where in its shard each sample begins."""
        return self._index[PARTS[0]]

    def shard_end(self, shard_id: int) -> int:
        """Bytes of a shard that samples lie in."""
        here = self._index[self._index["shard_id"] == shard_id]
        return max((self.manifest.shape.end(each) for each in here), default=0)

    def __getitem__(self, sample_id: int) -> Sample:
        """Raises IndexError, and CorruptSample for a sample that is not as it was written; others are not affected."""
        sample_id = range(len(self))[sample_id]
        index = self._index[sample_id]
        content = self._sound(sample_id, index)
        shape, seq_len = self.manifest.shape, int(index["seq_len"])
        offsets = [int(index[part]) for part in PARTS]

        def part(place: int, dtype: type[np.generic], width: int = 1) -> NDArray[Any]:
            return np.frombuffer(content, dtype, seq_len * width, offsets[place])

        return Sample(
            key=self._key(sample_id) if self._checks is not None else sample_id,
            input_ids=part(0, np.int32).copy(),
            attention_mask=part(1, np.uint8).copy(),
            loss_mask=part(2, np.uint8).copy(),
            hidden=part(3, np.uint16, shape.layers * shape.hidden_size).reshape(seq_len, -1),
            last_hidden=part(4, np.uint16, shape.hidden_size).reshape(seq_len, -1),
            sample_id=sample_id,
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[sample_id] for sample_id in range(len(self)))

    def sound(self, lost: Callable[[CorruptSample], None]) -> Iterator[Sample]:
        """All samples that can be trusted; ``lost`` is told of each of the others."""
        for sample_id in range(len(self)):
            try:
                sample = self[sample_id]
            except CorruptSample as error:
                lost(error)
            else:
                yield sample

    def shard_path(self, shard_id: int) -> Path:
        """Where a shard is: in the main folder, or else in one of the others."""
        name = self.manifest.shards[shard_id]
        return next((path for folder in self._folders if (path := folder / name).exists()), self._folders[0] / name)

    def _sound(self, sample_id: int, index: Record) -> mmap.mmap:
        """The shard of a sample that can be read."""
        checks = self._checks[sample_id] if self._checks is not None and self._check else None
        shard_id = int(index["shard_id"])
        if shard_id >= len(self.manifest.shards):
            raise self._corrupt(sample_id, Fault("index", f"shard {shard_id} of {len(self.manifest.shards)}"))
        try:
            content = self._map(shard_id)
        except (OSError, ValueError) as error:  # the latter for an empty file
            raise self._corrupt(sample_id, Fault("shard", f"cannot be read: {error}")) from error
        found = misplaced(len(content), self.manifest.shape, index, checks)
        if found is None and checks is not None and not self._checked[sample_id]:
            found = altered(content, self.manifest.shape, index, checks)
            self._checked[sample_id] = found is None
        if found is not None:
            raise self._corrupt(sample_id, found)
        return content

    def _map(self, shard_id: int) -> mmap.mmap:
        if shard_id not in self._maps:
            with self.shard_path(shard_id).open("rb") as file:
                self._maps[shard_id] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(self._maps) > OPEN_SHARDS:
                self._maps.popitem(last=False)  # arrays that look into it keep it open
        self._maps.move_to_end(shard_id)
        return self._maps[shard_id]

    def _key(self, sample_id: int) -> int:
        assert self._checks is not None
        return int(self._checks[sample_id]["key"])

    def _corrupt(self, sample_id: int, found: Fault) -> CorruptSample:
        shard_id = int(self._index[sample_id]["shard_id"])
        known = shard_id < len(self.manifest.shards)
        return CorruptSample(
            folder=self._folders[0],
            sample_id=sample_id,
            key=None if self._checks is None else self._key(sample_id),
            shard=self.manifest.shards[shard_id] if known else f"shard {shard_id}",
            part=found.part,
            what=found.what,
        )


def _reopen(folders: tuple[Path, ...], check: bool) -> TargetCache:
    return TargetCache.open(*folders, check=check)


def _records(path: Path, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InvalidRequest("cache", expected=f"a folder with {path.name}", got=str(path.parent)) from error
    if len(content) != count * dtype.itemsize:
        expected = f"{count} records of {dtype.itemsize} bytes, as many as the manifest counts samples"
        raise InvalidRequest(str(path), expected=expected, got=f"{len(content)} bytes")
    return np.frombuffer(content, dtype)
