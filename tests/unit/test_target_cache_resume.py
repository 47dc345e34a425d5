"""Killed at any byte, a writer goes on: nothing is lost but the sample it was writing."""

from __future__ import annotations

import errno
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from paceline.cache.target import TargetCache, TargetCacheWriter, seal
from paceline.cache.target import writer as writing
from paceline.cache.target.journal import PAIR
from paceline.cache.target.verify import verify
from paceline.speculation.errors import Unavailable

from tests.unit.target_cache_kit import SPEC, deepspec_read, same, sample

LENGTHS = (2, 3, 1)


def begin(folder: Path, **options: Any) -> list[tuple[int, int]]:
    """Write LENGTHS; returns the sizes of shard 0 and the journal after the claim and after each sample."""
    sizes = []
    with TargetCacheWriter(folder, SPEC, **options) as writer:
        for key, length in enumerate(LENGTHS):
            writer.write(sample(key, length))
            sizes.append(sizes_of(folder))
    return [(0, PAIR.itemsize), *sizes]


def sizes_of(folder: Path) -> tuple[int, int]:
    return (folder / "shard-00000.bin").stat().st_size, (folder / "writer-00000.journal").stat().st_size


def finish(folder: Path, **options: Any) -> int:
    """Resume, write what is missing, and check all of it; returns how many samples were still there."""
    with TargetCacheWriter(folder, SPEC, **options) as writer:
        held = len(writer)
        assert [key in writer for key in range(len(LENGTHS))] == [key < held for key in range(len(LENGTHS))]
        for key in range(held, len(LENGTHS)):
            writer.write(sample(key, LENGTHS[key]))
    seal(folder)
    cache = TargetCache.open(folder)
    assert verify(cache).sound
    assert all(same(*pair) for pair in zip(cache, (sample(*each) for each in enumerate(LENGTHS)), strict=True))
    assert len(deepspec_read(folder)) == len(LENGTHS)
    return held


def near(begin: int, end: int) -> list[int]:
    """Bytes from one state to the next: both, their neighbours, and some of each part between."""
    return sorted({begin, begin + 1, *range(begin + 5, end, 11), end - 1, end})


def test_a_writer_killed_at_any_byte_of_a_sample_loses_that_one_only(tmp_path: Path) -> None:
    states = begin(tmp_path / "whole")
    whole = sizes_of(tmp_path / "whole")
    # Bytes arrive in this order: a sample's, then its pair's. So these are all the states a kill can leave.
    cuts = []
    for (shard, entries), (next_shard, next_entries) in pairwise(states):
        cuts += [(at, entries) for at in near(shard, next_shard)]
        cuts += [(next_shard, at) for at in near(entries, next_entries)]
    for shard_bytes, journal_bytes in cuts:
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "whole", folder)
        for name, size in (("shard-00000.bin", shard_bytes), ("writer-00000.journal", journal_bytes)):
            with (folder / name).open("r+b") as file:
                file.truncate(size)
        assert finish(folder) == sum(journal_bytes >= pair for _, pair in states[1:]), (shard_bytes, journal_bytes)
        assert sizes_of(folder) == whole, "nothing is left of what was cut off"
        shutil.rmtree(folder)


def test_a_writer_killed_before_its_first_claim_was_entered_begins_anew(tmp_path: Path) -> None:
    begin(tmp_path)
    for name in ("shard-00000.bin", "writer-00000.journal"):
        with (tmp_path / name).open("r+b") as file:
            file.truncate(0)
    assert finish(tmp_path) == 0


def test_a_killed_claim_on_another_root_leaves_a_cache_that_can_be_read(tmp_path: Path) -> None:
    begin(tmp_path / "main", roots=[tmp_path / "root"])
    (tmp_path / "main/shard-00001.bin").symlink_to(tmp_path / "root/shard-00001.bin")
    assert finish(tmp_path / "main", roots=[tmp_path / "root"]) == len(LENGTHS)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_pages_lost_by_a_power_failure_lose_their_sample_only(tmp_path: Path, lost: int) -> None:
    states = begin(tmp_path)
    with (tmp_path / "shard-00000.bin").open("r+b") as file:
        file.seek(states[lost][0])
        file.write(b"\0" * 5)
    with TargetCacheWriter(tmp_path, SPEC) as writer:
        assert [key in writer for key in range(3)] == [key != lost for key in range(3)]
        writer.write(sample(lost, LENGTHS[lost]))
    seal(tmp_path)
    cache = TargetCache.open(tmp_path)
    assert verify(cache).sound
    assert all(same(*pair) for pair in zip(cache, (sample(*each) for each in enumerate(LENGTHS)), strict=True))


def test_a_shard_that_is_not_there_stops_its_writer(tmp_path: Path) -> None:
    begin(tmp_path / "main", roots=[tmp_path / "root"])
    (tmp_path / "root").rename(tmp_path / "unmounted")
    (tmp_path / "root").mkdir()
    for _ in range(2):  # and the first try leaves nothing behind that would change the second
        with pytest.raises(Unavailable, match=r"shard-00000.bin is gone"):
            TargetCacheWriter(tmp_path / "main", SPEC)
    (tmp_path / "root").rmdir()
    (tmp_path / "unmounted").rename(tmp_path / "root")
    assert finish(tmp_path / "main") == len(LENGTHS)


@pytest.mark.parametrize("call", range(6))
def test_a_full_disk_loses_nothing_that_was_written(tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, write = 0, writing._write

    def failing(file: Any, content: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            write(file, bytes(memoryview(content))[:3])
            raise OSError(errno.ENOSPC, "no space left")
        write(file, content)

    with TargetCacheWriter(tmp_path, SPEC) as writer:
        writer.write(sample(0, LENGTHS[0]))
        with monkeypatch.context() as patch:
            patch.setattr(writing, "_write", failing)
            with pytest.raises(OSError, match="no space"):
                writer.write(sample(1, LENGTHS[1]))
        assert 1 not in writer
        for key in (1, 2):
            writer.write(sample(key, LENGTHS[key]))
    assert finish(tmp_path) == len(LENGTHS)


def test_a_sealed_cache_can_be_added_to(tmp_path: Path) -> None:
    begin(tmp_path)
    assert seal(tmp_path).samples == 3
    with TargetCacheWriter(tmp_path, SPEC, writer=1) as writer:
        writer.write(sample(3))
        before = TargetCache.open(tmp_path)
        assert len(before) == 3
        assert seal(tmp_path).samples == 4
        assert same(before[2], sample(2, 1)), "an open cache stays what it was"
    assert same(TargetCache.open(tmp_path)[3], sample(3))
