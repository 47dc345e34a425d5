"""Samples to write, and a reader of DeepSpec's format that shares nothing with ours but the format's page."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from paceline.cache.target import CacheSpec, Sample

LAYERS = (-1, 1, 3)
HIDDEN = 4
SPEC = CacheSpec(LAYERS, HIDDEN, "tiny/target", source_jsonl_paths=("prompts.jsonl",), chat_template="tiny")


def sample(key: int, seq_len: int = 3, *, spec: CacheSpec = SPEC) -> Sample:
    """A sample that is a function of its key and length."""
    rng = np.random.default_rng((key, seq_len))
    width = len(spec.target_layer_ids) * spec.hidden_size
    return Sample(
        key=key,
        input_ids=rng.integers(0, 1 << 31, seq_len, np.int32),
        attention_mask=np.ones(seq_len, np.uint8),
        loss_mask=rng.integers(0, 2, seq_len, np.uint8),
        hidden=rng.integers(0, 1 << 16, (seq_len, width), np.uint16),
        last_hidden=rng.integers(0, 1 << 16, (seq_len, spec.hidden_size), np.uint16),
    )


def same(one: Sample, other: Sample) -> bool:
    """Whether two samples hold the same, wherever they lie."""
    return one.key == other.key and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one.parts, other.parts, strict=True)
    )


def deepspec_read(folder: Path) -> list[tuple[NDArray[Any], ...]]:
    """Every sample's parts, read as the format's page says and checked as its reader does."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["version"] == 2
    assert (manifest["hidden_dtype"], manifest["token_dtype"], manifest["mask_dtype"]) == ("bfloat16", "int32", "uint8")
    assert manifest["index_record_size"] == struct.calcsize("<QIIQQQQQ") == 56
    layers, hidden = manifest["target_layer_ids"], manifest["hidden_size"]
    assert layers == sorted(set(layers))
    assert [shard["shard_id"] for shard in manifest["shards"]] == list(range(manifest["num_shards"]))
    files = [folder / shard["file_name"] for shard in manifest["shards"]]
    assert all(path.exists() for path in files)
    index = (folder / "samples.idx").read_bytes()
    assert len(index) == 56 * manifest["num_samples"]
    samples = []
    for place, record in enumerate(struct.iter_unpack("<QIIQQQQQ", index)):
        sample_id, shard_id, length, *offsets = record
        assert sample_id == place, "sample ids are not dense"
        shard = files[shard_id].read_bytes()
        shapes = [(length,), (length,), (length,), (length, len(layers) * hidden), (length, hidden)]
        parts = [
            np.frombuffer(shard, kind, int(np.prod(shape)), offset).reshape(shape)
            for kind, shape, offset in zip(("<i4", "u1", "u1", "<u2", "<u2"), shapes, offsets, strict=True)
        ]
        ends = [offset + part.nbytes for offset, part in zip(offsets, parts, strict=True)]
        assert offsets[1:] == ends[:-1], "parts are not back to back"
        samples.append(tuple(parts))
    return samples
