"""Writing a cache: one writer of possibly many, each with shards and a journal of its own."""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from paceline.cache.target import journal
from paceline.cache.target.check import fault
from paceline.cache.target.folder import CacheFolder
from paceline.cache.target.layout import PARTS, Sample, checks_record, index_record, shard_name
from paceline.cache.target.manifest import CacheSpec
from paceline.speculation.errors import InvalidRequest, Unavailable

SHARD_BYTES = 64 << 30
_DTYPES = (np.int32, np.uint8, np.uint8, np.uint16, np.uint16)


class TargetCacheWriter:
    """Appends samples. Killed at any point, it goes on where it was: nothing is lost but the sample being written.

    A cache may have many writers at once, in many processes; ``seal`` makes a cache of what they wrote, as often as
    one likes. Keys are the caller's: distinct over all writers, and dense in the end if sample ids shall equal them.

    Args:
        folder: the main one; made if it is not there.
        spec: the same for all writers.
        writer: this one's number; only one at a time may have it.
        roots: where shards go, in turn; the main folder itself by default.
        shard_bytes: a shard is full when its next sample would exceed it.

    Raises:
        InvalidRequest: the folder is not of this cache, or the spec is another.
        Unavailable: a writer with this number is at work.
    """

    def __init__(
        self,
        folder: Path | str,
        spec: CacheSpec,
        *,
        writer: int = 0,
        roots: Sequence[Path | str] = (),
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self._folder = CacheFolder.open(Path(folder), [Path(root) for root in roots], spec)
        self._shape, self._shard_bytes = spec.shape, shard_bytes
        self._lock = _locked(self._folder.main / f"writer-{writer:05d}.lock", writer)
        self._path = journal.journal_path(self._folder.main, writer)
        self._shard: IO[bytes] | None = None
        self._shard_id = -1
        try:
            pairs = self._resume()
        except BaseException:
            self._lock.close()
            raise
        self._keys = {int(key) for key in pairs["checks"]["key"][pairs["index"]["seq_len"] > 0]}
        self._journal = self._path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __contains__(self, key: int) -> bool:
        """Whether this writer has written the sample."""
        return key in self._keys

    def __len__(self) -> int:
        """Samples this writer has written."""
        return len(self._keys)

    def write(self, sample: Sample) -> None:
        """Append a sample. Raises InvalidRequest naming the part that is not as the cache's spec has it, or the key."""
        self._check(sample)
        seq_len = len(sample.input_ids)
        shard = self._room(sum(self._shape.sizes(seq_len)))
        start, entries = shard.tell(), os.fstat(self._journal.fileno()).st_size
        try:
            sums = [_append(shard, part) for part in sample.parts]
            index = index_record(sample.key, self._shard_id, seq_len, self._shape.offsets(seq_len, start))
            self._enter(journal.pair(index, checks_record(sample.key, sums, index)))
        except BaseException:  # a full disk, or Ctrl-C: what is there stays whole, and writing may go on
            os.ftruncate(self._journal.fileno(), entries)
            os.ftruncate(shard.fileno(), start)
            shard.seek(start)
            raise
        self._keys.add(sample.key)

    def sync(self) -> None:
        """Force to disk what was written: after this not even a power failure loses it."""
        if self._shard is not None:
            os.fsync(self._shard.fileno())
        os.fsync(self._journal.fileno())

    def close(self) -> None:
        """Force everything to disk and give the writer's number back. Doing it again does nothing."""
        if self._journal.closed:
            return
        try:
            self.sync()
        finally:
            if self._shard is not None:
                self._shard.close()
            self._journal.close()
            self._lock.close()

    def _check(self, sample: Sample) -> None:
        seq_len = len(sample.input_ids)
        if seq_len < 1:
            raise InvalidRequest("input_ids", expected="at least one token", got=0)
        if sample.key < 0 or sample.key in self._keys:
            raise InvalidRequest("key", expected="one that was not written yet", got=sample.key)
        widths = ((), (), (), (self._shape.layers * self._shape.hidden_size,), (self._shape.hidden_size,))
        for name, part, dtype, width in zip(PARTS, sample.parts, _DTYPES, widths, strict=True):
            if part.dtype != dtype or part.shape != (seq_len, *width):
                expected = f"{np.dtype(dtype).name} of shape {(seq_len, *width)}"
                raise InvalidRequest(name, expected=expected, got=f"{part.dtype.name} of shape {part.shape}")

    def _room(self, size: int) -> IO[bytes]:
        """The shard the next sample goes to."""
        if self._shard is not None and self._shard.tell() + size > max(self._shard_bytes, size):
            self.sync()
            self._shard.close()
            self._shard = None
        if self._shard is None:
            shard_id = self._folder.claim()
            self._enter(journal.claim_pair(shard_id))
            self._open(shard_id)
        assert self._shard is not None
        return self._shard

    def _open(self, shard_id: int) -> None:
        self._shard_id = shard_id
        self._shard = (self._folder.main / shard_name(shard_id)).open("r+b", buffering=0)
        self._shard.seek(0, os.SEEK_END)

    def _enter(self, pair: Any) -> None:
        _write(self._journal, pair.tobytes())

    def _resume(self) -> journal.Pairs:
        """What an earlier run of this writer left, made whole: its journal, and the shard it was writing.

        Only that shard is looked at: those before it were forced to disk, and ``verify`` reads them. Its bytes are
        read, for a power failure may have kept a sample's entry and lost some of its pages.
        """
        found = pairs = journal.load(self._path)
        end = 0
        if len(found):
            path, here = self._open_shard(found)
            sound = [fault(path, self._shape, each["index"], each["checks"]) is None for each in found[here]]
            pairs = np.concatenate([found[~here], found[here][sound]])
            end = max((self._shape.end(each["index"]) for each in found[here][sound]), default=0)
        if self._path.exists() and pairs.nbytes != self._path.stat().st_size:
            journal.rewrite(self._path, pairs)
        if len(found):
            os.truncate(path, end)
            self._open(int(found[-1]["index"]["shard_id"]))
        return pairs

    def _open_shard(self, pairs: journal.Pairs) -> tuple[Path, NDArray[np.bool_]]:
        """The shard that was being written, and which pairs are samples in it."""
        shard_id = pairs[-1]["index"]["shard_id"]
        path = self._folder.main / shard_name(int(shard_id))
        if not path.exists():
            raise Unavailable(f"{path} is gone, and {self._path.stem} was writing to it; is its disk there?")
        return path, (pairs["index"]["shard_id"] == shard_id) & (pairs["index"]["seq_len"] > 0)


def _append(shard: IO[bytes], part: Any) -> int:
    """Write a part; returns its CRC-32."""
    content = np.ascontiguousarray(part).astype(part.dtype.newbyteorder("<"), copy=False).data.cast("B")
    _write(shard, content)
    return zlib.crc32(content)


def _write(file: IO[bytes], content: bytes | memoryview) -> None:
    """All of it: one call of the system writes 2 GiB at most, or what a disk has room for."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _locked(path: Path, writer: int) -> IO[bytes]:
    lock = path.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise Unavailable(f"writer {writer} of {path.parent} is at work in another process") from error
    return lock
