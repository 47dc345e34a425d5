"""From what writers wrote to a cache that can be read: index, checksums and manifest."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paceline.cache.target import journal
from paceline.cache.target.folder import load_spec, shards_in
from paceline.cache.target.layout import CHECKS_FILE, INDEX_FILE, MANIFEST_FILE, shard_name
from paceline.cache.target.manifest import Manifest, replace_file
from paceline.speculation.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Sealed:
    """What became of a cache."""

    samples: int
    tokens: int
    shards: int
    repeated: int  # keys that more than one writer wrote; the lowest writer's sample counts


def seal(folder: Path | str) -> Sealed:
    """Merge the writers' journals, in the order of keys. Writers may be at work: what they have finished is in it.

    Sample ids are places in this order, as version 2 wants them, so they equal the keys once those are dense. The
    three files are replaced one after the other; a reader that comes between them is refused and may try again.

    Raises InvalidRequest for a folder that is not ours or holds no sample.
    """
    main = Path(folder)
    spec = load_spec(main)
    pairs = np.concatenate([np.empty(0, journal.PAIR), *(journal.load(path) for path in journal.journals(main))])
    pairs = pairs[pairs["index"]["seq_len"] > 0]
    if not len(pairs):
        raise InvalidRequest("cache", expected="at least one sample", got=f"none in {main}")
    keys, first = np.unique(pairs["checks"]["key"], return_index=True)
    kept = pairs[first]
    kept["index"]["sample_id"] = np.arange(len(keys))
    shards = range(shards_in(main)[-1] + 1)
    for shard_id in shards:  # claimed, and its writer killed before the file was made
        path = main / shard_name(shard_id)
        if not path.exists():
            with contextlib.suppress(FileExistsError):
                (path.readlink() if path.is_symlink() else path).touch()
    layers = tuple(spec.pop("target_layer_ids"))
    manifest = Manifest(len(kept), layers, spec.pop("hidden_size"), tuple(map(shard_name, shards)), spec)
    replace_file(main / CHECKS_FILE, kept["checks"].tobytes())
    replace_file(main / INDEX_FILE, kept["index"].tobytes())
    replace_file(main / MANIFEST_FILE, (json.dumps(manifest.to_json(), indent=2, sort_keys=True) + "\n").encode())
    return Sealed(len(kept), int(kept["index"]["seq_len"].sum(dtype=np.int64)), len(shards), len(pairs) - len(kept))
