"""What one writer has written: pairs of an index record and a checksum record, appended after each sample.

A record without tokens says that the writer claimed a shard. A pair is written by one call after its sample, so that
what a killed writer leaves is a sample without a pair, or half a pair; both are cut off when it resumes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.cache.target.layout import CHECKS, INDEX, PARTS, Record, checks_record, index_record, record_sum
from paceline.cache.target.manifest import replace_file

PAIR = np.dtype([("index", INDEX), ("checks", CHECKS)])
Pairs = NDArray[Any]  # of PAIR

_JOURNAL = re.compile(r"writer-(\d{5,})\.journal")


def journal_path(main: Path, writer: int) -> Path:
    """Where a writer keeps its journal."""
    return main / f"writer-{writer:05d}.journal"


def journals(main: Path) -> list[Path]:
    """The journals of a cache, by writer."""
    found = [(int(match[1]), main / name) for name in os.listdir(main) if (match := _JOURNAL.fullmatch(name))]
    return [path for _, path in sorted(found)]


def claim_pair(shard_id: int) -> Record:
    """Says that a shard is the writer's."""
    index = index_record(0, shard_id, 0, (0,) * len(PARTS))
    return pair(index, checks_record(0, (0,) * len(PARTS), index))


def pair(index: Record, checks: Record) -> Record:
    """One entry of a journal."""
    return np.array((index, checks), PAIR)[()]


def load(path: Path) -> Pairs:
    """A journal's pairs, but for those that are not as they were written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    pairs = np.frombuffer(content, PAIR, len(content) // PAIR.itemsize)
    sound = [int(each["checks"]["record"]) == record_sum(each["index"], each["checks"]) for each in pairs]
    return pairs[np.array(sound, np.bool_)]


def rewrite(path: Path, pairs: Pairs) -> None:
    """Put a journal in place that holds these pairs and no others."""
    replace_file(path, pairs.tobytes())
