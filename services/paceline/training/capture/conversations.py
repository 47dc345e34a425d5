"""Prompts to be answered: JSON lines of ``{"turns": ["…", …]}``, with ``"system": "…"`` if one is wanted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.speculation.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a user says, turn by turn."""

    turns: tuple[str, ...]
    system: str | None = None

    @property
    def digest(self) -> str:
        """What it is known by: a hash of its text."""
        text = json.dumps([self.system, *self.turns], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_conversations(paths: Iterable[Path]) -> list[Conversation]:
    """All conversations of some files, in order, none twice.

    Raises InvalidRequest naming file and line of one that is malformed.
    """
    found = (each for path in paths for each in _lines(path))
    return list({each.digest: each for each in found}.values())


def _lines(path: Path) -> Iterator[Conversation]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest("prompts", expected="a JSON lines file", got=f"{path}: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield _conversation(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                expected = '{"turns": ["…"]}, and "system": "…" beside it if wanted'
                raise InvalidRequest(f"{path}:{number}", expected=expected, got=line[:80]) from error


def _conversation(fields: dict[str, Any]) -> Conversation:
    turns, system = fields["turns"], fields.get("system")
    if not turns or not all(isinstance(turn, str) for turn in turns) or not isinstance(system, str | None):
        raise TypeError(turns)
    return Conversation(tuple(turns), system)
