"""The folders of a cache that is being written: whose they are, and which shards there are.

The main folder holds everything but the shards that went to other roots; of those it holds a symbolic link, so that a
reader that knows of one folder only finds them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paceline.cache.target.layout import shard_name
from paceline.cache.target.manifest import CacheSpec
from paceline.speculation.errors import InvalidRequest

MARK_FILE = "paceline-cache.json"
_SHARD = re.compile(r"shard-(\d{5,})\.bin")


class CacheFolder:
    """Made by ``open``."""

    def __init__(self, main: Path, roots: Sequence[Path], spec: dict[str, Any]) -> None:
        self.main, self.roots, self.spec = main, tuple(roots), spec

    @classmethod
    def open(cls, main: Path, roots: Sequence[Path], spec: CacheSpec) -> CacheFolder:
        """Make a cache's folders, or join writers that did. Shards go to ``roots`` in turn; none is the main folder.

        Raises InvalidRequest for a folder that is not empty and not of this cache, or one that says something else.
        """
        said = spec.to_json()
        mark = _own(main, {"cache_id": uuid.uuid4().hex, "spec": said})
        if mark.get("spec") != said:
            theirs = mark.get("spec") or {}
            field = next((key for key in {**said, **theirs} if said.get(key) != theirs.get(key)), "spec")
            hint = f"{main} was begun with that; go on with the same settings or take another folder"
            raise InvalidRequest(field, expected=repr(theirs.get(field)), got=said.get(field), hint=hint)
        for root in roots:
            if root.resolve() != main.resolve():
                held = _own(root, {"cache_id": mark["cache_id"], "main": str(main.resolve())})
                if held["cache_id"] != mark["cache_id"]:
                    raise InvalidRequest("root", expected=f"a folder of {main}", got=f"{root}, of {held.get('main')}")
        return cls(main, roots or (main,), said)

    def claim(self) -> int:
        """Make the next shard, empty and nobody else's."""
        shard_id = max(self.shards(), default=-1) + 1
        while not self._make(shard_id):
            shard_id += 1
        return shard_id

    def _make(self, shard_id: int) -> bool:
        root, name = self.roots[shard_id % len(self.roots)], shard_name(shard_id)
        with contextlib.suppress(FileExistsError):
            if root.resolve() == self.main.resolve():
                (self.main / name).touch(exist_ok=False)
            else:
                (self.main / name).symlink_to(root.resolve() / name)
                (root / name).touch(exist_ok=False)
            return True
        return False

    def shards(self) -> list[int]:
        """The shards there are, 0 to the last one."""
        return shards_in(self.main)


def shards_in(main: Path) -> list[int]:
    """Shard ids in a main folder, ascending."""
    return sorted(int(match[1]) for name in os.listdir(main) if (match := _SHARD.fullmatch(name)))


def load_spec(main: Path) -> dict[str, Any]:
    """What the writers of a cache agreed on: the manifest's fields. Raises InvalidRequest for any other folder."""
    mark = _read(main)
    if mark is None or "spec" not in mark:
        raise InvalidRequest("cache", expected=f"a folder with {MARK_FILE}", got=str(main))
    return dict(mark["spec"])


def _own(folder: Path, mark: dict[str, Any]) -> dict[str, Any]:
    """The folder's mark, ``mark`` if it had none. Raises InvalidRequest for a folder that others use."""
    folder.mkdir(parents=True, exist_ok=True)
    if (found := _read(folder)) is not None:
        return found
    strangers = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if strangers and (found := _read(folder)) is None:
        got = f"{folder} with {strangers[0]} in it"
        raise InvalidRequest("folder", expected="an empty folder, or one of this cache", got=got)
    staging = folder / f".{MARK_FILE}.{uuid.uuid4().hex}"
    staging.write_text(json.dumps(mark, indent=2, sort_keys=True) + "\n")
    with contextlib.suppress(FileExistsError):  # another writer was first
        os.link(staging, folder / MARK_FILE)
    staging.unlink()
    written = _read(folder)
    assert written is not None, folder
    return written


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        mark = json.loads((folder / MARK_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InvalidRequest(str(folder / MARK_FILE), expected="JSON", got=str(error)) from error
    return mark if isinstance(mark, dict) else {}
