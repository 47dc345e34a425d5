"""The answers file: JSON lines, the first of which says how they were made; one line per finished turn after it.

It is only ever appended to, so that a line's number names its answer for good.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paceline.speculation.errors import InvalidRequest, Unavailable

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """The target's answer to one turn."""

    conversation: str  # digest
    choice: int
    turn: int
    last: bool  # whether the conversation ends with it
    seed: int
    temperature: float
    prompt: tuple[int, ...]  # all that the target read: the turns and answers before, too
    tokens: tuple[int, ...]  # the end token included, if the answer ended with one
    finish: str  # stop or length

    @property
    def place(self) -> tuple[str, int, int]:
        return self.conversation, self.choice, self.turn


@dataclass(frozen=True, slots=True)
class Answers:
    """A file as it was read."""

    settings: Mapping[str, Any]
    answers: tuple[Answer, ...]
    size: int  # bytes of whole lines


def load(path: Path) -> Answers:
    """Read an answers file; a last line that is not whole is left out.

    Raises InvalidRequest for a file that is none, naming the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidRequest("answers", expected="an answers file", got=f"{path}: {error.strerror}") from error
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.splitlines()
    try:
        settings = json.loads(lines[0])
        if settings.pop("paceline_answers") != FORMAT:
            raise ValueError
    except (IndexError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise InvalidRequest("answers", expected="a file of captured answers", got=str(path)) from error
    return Answers(settings, tuple(_answer(path, number, line) for number, line in enumerate(lines[1:], 2)), len(whole))


def _answer(path: Path, number: int, line: bytes) -> Answer:
    try:
        fields = json.loads(line)
        return Answer(**{**fields, "prompt": tuple(fields["prompt"]), "tokens": tuple(fields["tokens"])})
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequest(
            f"{path}:{number}", expected="an answer", got=line[:60].decode(errors="replace")
        ) from error


class AnswerLog:
    """Appends answers to a file; what is in it already is in ``answers``.

    Args:
        settings: all that answers depend on. A file that was begun with others is refused.

    Raises:
        InvalidRequest: the file is not of these answers, naming the setting that differs.
        Unavailable: another process is appending to it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        try:
            self._lock(path)
            if self._file.tell() == 0:
                self._append({"paceline_answers": FORMAT, **settings})
            found = load(path)
            _compare(path, found.settings, json.loads(json.dumps(dict(settings))))
            os.ftruncate(self._file.fileno(), found.size)
        except BaseException:
            self._file.close()
            raise
        self.answers = found.answers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def append(self, answer: Answer) -> None:
        """Keep an answer: from now on no kill loses it."""
        self._append(asdict(answer))

    def _append(self, fields: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(fields, separators=(",", ":")).encode() + b"\n")

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Unavailable(f"{path}: another process is appending to it") from error


def _compare(path: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name in {**asked, **found}:
        if found.get(name) != asked.get(name):
            hint = f"{path} was begun with that; go on with the same settings or take another file"
            raise InvalidRequest(name, expected=str(found.get(name)), got=asked.get(name), hint=hint)
