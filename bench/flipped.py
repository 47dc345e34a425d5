"""A copy of a target cache with one byte flipped, and what becomes of its samples."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from paceline.cache.target import CorruptSample, TargetCache
from paceline.cache.target.layout import CHECKS_FILE, INDEX_FILE, MANIFEST_FILE
from paceline.training.recipe import Recipe
from paceline.training.samples import SampleSet

_NAMED = re.compile(r": sample (\d+)\b")
_STEPS = 10  # of a training that comes by the sample


@dataclass(frozen=True, slots=True)
class Flipped:
    """What was done."""

    folder: Path  # of the copy
    samples: int
    sample_id: int
    shard: str
    offset: int  # of the byte in its shard
    steps: int  # of a training on the copy that would need the sample


def flip(cache: Path, folder: Path, seed: int) -> Flipped:
    """Copy a cache into ``folder`` and flip a byte in the middle of a sample's hidden states.

    Only that sample's shard is copied; the others are linked, and the cache stays as it is.

    Args:
        seed: of a training's order; the sample is the first it would read.
    """
    samples = SampleSet([cache])
    [sample_id, *_] = samples.order(seed, 0, Recipe(steps=_STEPS).samples)
    found = samples.caches[0]
    shard_id = int(found.shard_ids[sample_id])
    folder.mkdir()
    for name in (MANIFEST_FILE, INDEX_FILE, CHECKS_FILE):
        shutil.copy(cache / name, folder)
    for each, name in enumerate(found.manifest.shards):
        path = found.shard_path(each).resolve()
        if each == shard_id:
            shutil.copyfile(path, folder / name)
        else:
            (folder / name).symlink_to(path)
    shard = found.manifest.shards[shard_id]
    shape, length = found.manifest.shape, int(found.lengths[sample_id])
    states, after = shape.offsets(length, int(found.starts[sample_id]))[3:]
    offset = (states + after) // 2
    with (folder / shard).open("r+b") as file:
        file.seek(offset)
        [byte] = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))
    return Flipped(folder, len(found), sample_id, shard, offset, _STEPS)


def named_samples(folder: Path) -> list[int]:
    """The samples that ``paceline cache verify`` says are corrupt, in a process of its own.

    Raises RuntimeError if it does not fail: its exit code is what scripts look at.
    """
    command = [sys.executable, "-m", "paceline.cli.main", "cache", "verify", str(folder)]
    told = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    sys.stdout.write(told.stdout)
    if told.returncode != 1:
        raise RuntimeError(f"expected `paceline cache verify` to fail with 1, got {told.returncode}")
    return [int(number) for number in _NAMED.findall(told.stdout)]


def goes_on(planted: Flipped) -> int:
    """How many samples can still be read. Raises RuntimeError if another than the planted one cannot."""
    lost: list[CorruptSample] = []
    read = sum(1 for _ in TargetCache.open(planted.folder).sound(lost.append))
    if [each.sample_id for each in lost] != [planted.sample_id]:
        raise RuntimeError(f"expected to lose sample {planted.sample_id}, lost {[each.sample_id for each in lost]}")
    return read
