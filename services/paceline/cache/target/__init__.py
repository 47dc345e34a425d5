"""The target cache: what a drafter is trained on, in DeepSpec's format, version 2.

A cache is a folder with ``manifest.json``, ``samples.idx`` and shards, exactly as DeepSpec's own reader expects them.
Beside them lie files of ours that readers of version 2 don't look at: ``samples.crc``, the samples' checksums;
``writer-NNNNN.journal``, what each writer has written; ``paceline-cache.json``, which says whose folder it is.
"""

from paceline.cache.target.errors import CorruptSample
from paceline.cache.target.layout import Sample
from paceline.cache.target.manifest import CacheSpec, Manifest
from paceline.cache.target.reader import TargetCache
from paceline.cache.target.seal import Sealed, seal
from paceline.cache.target.writer import TargetCacheWriter

__all__ = ["CacheSpec", "CorruptSample", "Manifest", "Sample", "Sealed", "TargetCache", "TargetCacheWriter", "seal"]
