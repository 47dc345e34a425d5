"""Where captured sessions are kept: a row of target caches in one folder, the oldest of which go when it is full."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from paceline.cache.target import CacheSpec, Sample, TargetCacheWriter, seal
from paceline.cache.target.layout import MANIFEST_FILE
from paceline.speculation.errors import PacelineError

log = logging.getLogger(__name__)

SEGMENTS = 8  # caches a folder holds when it is full
CLOSE_WAIT_S = 30.0
CLAIM_S = 60.0  # from making a folder to writing in it, at most


class Segments:
    """The caches of a folder, by number. Used by one thread.

    Several targets may share the folder: each writes to caches of its own.

    Args:
        retention_bytes: of all caches together, at most.
    """

    def __init__(self, folder: Path, spec: CacheSpec, *, retention_bytes: int) -> None:
        self._folder, self._spec = folder, spec
        self._retention_bytes = retention_bytes
        self._segment_bytes = max(1, retention_bytes // SEGMENTS)
        self._writer: TargetCacheWriter | None = None
        self._path = folder
        self._size = self._written = 0
        folder.mkdir(parents=True, exist_ok=True)
        for path in self._caches():  # a killed process left it unsealed
            if not (path / MANIFEST_FILE).exists() and not _in_use(path):
                _seal(path)

    def write(self, sample: Sample) -> int:
        """Keep a sample; returns its bytes."""
        size = sum(part.nbytes for part in sample.parts)
        if self._writer is not None and self._size + size > self._segment_bytes:
            self.close()
        if self._writer is None:
            self._prune()
            self._path = self._claim()
            self._writer = TargetCacheWriter(self._path, self._spec)
            self._size = self._written = 0
        self._writer.write(replace(sample, key=self._written))
        self._written += 1
        self._size += size
        return size

    def close(self) -> None:
        """Make what is written readable."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
            _seal(self._path)

    def _claim(self) -> Path:
        number = max((int(path.name) for path in self._caches()), default=-1) + 1
        while True:
            path = self._folder / f"{number:06d}"
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
            number += 1

    def _prune(self) -> None:
        """Make room for another cache."""
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in self._caches()}
        for path in sorted(sizes):
            if sum(sizes.values()) + self._segment_bytes <= self._retention_bytes:
                return
            if not _in_use(path):
                log.info("captures: %s is the oldest and goes", path)
                shutil.rmtree(path)
                del sizes[path]

    def _caches(self) -> Iterator[Path]:
        return (path for path in sorted(self._folder.iterdir()) if path.is_dir() and path.name.isdecimal())


@dataclass(slots=True)
class Written:
    """What a store has done since it was made. Changed by its thread alone."""

    samples: int = 0
    tokens: int = 0
    size: int = 0  # bytes
    lost: int = 0  # samples that could not be written


class CaptureStore:
    """A thread that writes.

    Args:
        queue_bytes: of samples that wait for it, at most.
    """

    def __init__(self, segments: Segments, *, queue_bytes: int) -> None:
        self._segments, self._queue_bytes = segments, queue_bytes
        self._waiting = 0  # bytes
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[int, Callable[[], Sample]] | None] = queue.SimpleQueue()
        self.written = Written()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def put(self, size: int, make: Callable[[], Sample]) -> bool:
        """Have a sample made and written some time; False if too many bytes wait."""
        with self._lock:
            if self._waiting + size > self._queue_bytes:
                return False
            self._waiting += size
        self._queue.put((size, make))
        return True

    @property
    def waiting_bytes(self) -> int:
        """Of samples that are not written yet."""
        return self._waiting

    def close(self) -> None:
        """Write what waits and make all of it readable, within CLOSE_WAIT_S."""
        self._queue.put(None)
        self._thread.join(CLOSE_WAIT_S)

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            size, make = entry
            try:
                self._write(make())
            except Exception:  # whatever it was, answers must not suffer for it
                self.written.lost += 1
                log.exception("captures: a sample could not be written; %d are lost so far", self.written.lost)
            with self._lock:
                self._waiting -= size
        try:
            self._segments.close()
        except Exception:
            log.exception("captures: the last cache could not be sealed; the next start will try again")

    def _write(self, sample: Sample) -> None:
        size = self._segments.write(sample)
        self.written.samples += 1
        self.written.tokens += len(sample.input_ids)
        self.written.size += size


def _in_use(path: Path) -> bool:
    """Whether somebody is writing to a cache."""
    try:
        with (path / "writer-00000.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return time.time() - path.stat().st_mtime < CLAIM_S  # somebody may just be about to
    except OSError:
        return True
    return False


def _seal(path: Path) -> None:
    try:
        sealed = seal(path)
    except PacelineError as error:
        log.info("captures: %s holds nothing: %s", path, error)
    else:
        log.info("captures: %s has %d samples of %d tokens", path, sealed.samples, sealed.tokens)
