"""The manifest: what is in a cache, and where it came from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from paceline.cache.target.layout import INDEX, MANIFEST_FILE, Shape
from paceline.speculation.errors import InvalidRequest, Unsupported

VERSION = 2
_FIXED = {
    "version": VERSION,
    "hidden_dtype": "bfloat16",
    "token_dtype": "int32",
    "mask_dtype": "uint8",
    "index_record_size": INDEX.itemsize,
}
_COUNTED = ("num_samples", "num_shards", "target_layer_ids", "hidden_size", "shards")


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What all samples of a cache share, and where they come from. Field names are DeepSpec's.

    Layer -1 is the embedding's output, layer i that of decoder layer i.
    """

    target_layer_ids: tuple[int, ...]
    hidden_size: int
    target_model_name_or_path: str
    source_jsonl_paths: tuple[str, ...] = ()
    chat_template: str = ""
    max_length: int = 0
    min_loss_tokens: int = 0
    project_name: str | None = None
    exp_name: str | None = None
    git_sha: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)  # provenance DeepSpec has no field for; JSON

    def __post_init__(self) -> None:
        ids = self.target_layer_ids
        if not ids or ids[0] < -1 or any(a >= b for a, b in pairwise(ids)):
            raise InvalidRequest("target_layer_ids", expected="strictly increasing, from -1 (the embedding)", got=ids)
        if self.hidden_size < 1:
            raise InvalidRequest("hidden_size", expected="at least 1", got=self.hidden_size)

    @property
    def shape(self) -> Shape:
        return Shape(len(self.target_layer_ids), self.hidden_size)

    def to_json(self) -> dict[str, Any]:
        """The manifest's fields of a spec."""
        fields = asdict(self)
        return {**fields.pop("more"), **json.loads(json.dumps(fields))}


@dataclass(frozen=True, slots=True)
class Manifest:
    """``manifest.json``."""

    num_samples: int
    target_layer_ids: tuple[int, ...]
    hidden_size: int
    shards: tuple[str, ...]  # file names, by shard id
    provenance: Mapping[str, Any] = field(default_factory=dict)  # every other field

    @property
    def shape(self) -> Shape:
        return Shape(len(self.target_layer_ids), self.hidden_size)

    @property
    def target_model(self) -> str:
        """What the target was called where the cache was made; empty if it is not said."""
        return str(self.provenance.get("target_model_name_or_path", ""))

    def to_json(self) -> dict[str, Any]:
        return {
            **self.provenance,
            **_FIXED,
            "num_samples": self.num_samples,
            "num_shards": len(self.shards),
            "target_layer_ids": list(self.target_layer_ids),
            "hidden_size": self.hidden_size,
            "shards": [{"shard_id": i, "file_name": name} for i, name in enumerate(self.shards)],
        }

    @classmethod
    def from_json(cls, fields: Any) -> Manifest:
        """Raises InvalidRequest naming the field that is wrong."""
        if not isinstance(fields, dict):
            raise InvalidRequest(MANIFEST_FILE, expected="a JSON object", got=type(fields).__name__)
        for name in (*_FIXED, *_COUNTED):
            if name not in fields:
                raise InvalidRequest(f"{MANIFEST_FILE}.{name}", expected="it present", got=None)
        for name, value in _FIXED.items():
            if fields[name] != value:
                raise Unsupported(f"{MANIFEST_FILE}.{name}", got=fields[name], hint=f"this version reads {value!r}")
        try:
            manifest = cls(
                num_samples=int(fields["num_samples"]),
                target_layer_ids=tuple(int(layer) for layer in fields["target_layer_ids"]),
                hidden_size=int(fields["hidden_size"]),
                shards=_names(fields["shards"]),
                provenance={key: value for key, value in fields.items() if key not in (*_FIXED, *_COUNTED)},
            )
            counted = int(fields["num_shards"])
        except (TypeError, ValueError, KeyError) as error:
            raise InvalidRequest(MANIFEST_FILE, expected="version 2's fields", got=repr(error)) from error
        if counted != len(manifest.shards):
            raise InvalidRequest(f"{MANIFEST_FILE}.num_shards", expected=str(len(manifest.shards)), got=counted)
        CacheSpec(manifest.target_layer_ids, manifest.hidden_size, "")
        return manifest

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Raises InvalidRequest if the folder holds none, or one we can't read."""
        path = folder / MANIFEST_FILE
        try:
            fields = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            hint = "a cache that is still being written has none"
            raise InvalidRequest(
                "cache", expected=f"a folder with {MANIFEST_FILE}", got=str(folder), hint=hint
            ) from error
        except ValueError as error:
            raise InvalidRequest(str(path), expected="JSON", got=str(error)) from error
        return cls.from_json(fields)


def _names(shards: Any) -> tuple[str, ...]:
    for place, shard in enumerate(shards):
        if int(shard["shard_id"]) != place:
            raise InvalidRequest(f"{MANIFEST_FILE}.shards", expected=f"shard_id {place} next", got=shard["shard_id"])
    return tuple(str(shard["file_name"]) for shard in shards)


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in place whole, and on disk. Whoever reads it sees the old one or the new one."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    with staging.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)
