"""Prompts of a folder, put to a running cluster, and the rounds their answers took."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paceline_client import AsyncClient, Speculation

from paceline.speculation.errors import InvalidRequest
from paceline.speculation.figures import Figures, RoundSeen

FORM = '{"turns": ["text of the user", …]}'


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for of every prompt."""

    max_tokens: int = 128
    temperature: float = 0.0
    verification_mode: Literal["agreement", "rejection"] = "agreement"
    turns: int = 1  # of a conversation, at most
    model: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers to one prompt's turns."""

    token_ids: tuple[int, ...]  # of all turns
    rounds: tuple[RoundSeen, ...]
    seconds: float
    draft_wait_s: float
    verify_wait_s: float

    @property
    def figures(self) -> Figures:
        return Figures(self.rounds)

    @property
    def tokens_per_second(self) -> float:
        return len(self.token_ids) / self.seconds


def read_prompts(folder: Path, limit: int = 0) -> dict[str, list[tuple[str, ...]]]:
    """Domain (the file's name) -> turns of each prompt, ``limit`` of each file at most, 0 for all.

    Raises InvalidRequest naming the folder, or the file and line, that is not what it should be.
    """
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    if not files:
        raise InvalidRequest("prompts", expected="a folder of .jsonl files", got=str(folder))
    return {path.stem: _read(path, limit) for path in files}


def _read(path: Path, limit: int) -> list[tuple[str, ...]]:
    out: list[tuple[str, ...]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if limit and len(out) == limit:
            break
        if line.strip():
            out.append(_turns(line, f"{path.name}, line {number}"))
    if not out:
        raise InvalidRequest("prompts", expected=f"lines {FORM}", got=f"none in {path}")
    return out


def _turns(line: str, where: str) -> tuple[str, ...]:
    try:
        turns = json.loads(line)["turns"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequest("prompts", expected=FORM, got=line[:80], hint=f"in {where}") from error
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
        raise InvalidRequest("prompts.turns", expected="texts, at least one", got=str(turns)[:80], hint=f"in {where}")
    return tuple(turns)


async def answer(client: AsyncClient, turns: Sequence[str], speculation: Speculation, ask: Ask) -> Answered:
    """One conversation: each turn is asked with the answers to those before it."""
    messages: list[dict[str, str]] = []
    tokens: list[int] = []
    rounds: list[RoundSeen] = []
    waits = [0, 0]
    began = time.perf_counter()
    for turn in turns[: ask.turns]:
        messages.append({"role": "user", "content": turn})
        options: dict[str, Any] = {"model": ask.model} if ask.model else {}
        stream = client.stream(
            messages=messages,
            temperature=ask.temperature,
            max_tokens=ask.max_tokens,
            seed=ask.seed,
            verification_mode=ask.verification_mode,
            speculation=speculation,
            **options,
        )
        async with stream:
            rounds += [
                RoundSeen(
                    each.drafted, each.verified, each.accepted, len(each.tokens), each.drafter,
                    each.confidence[: each.drafted],
                )
                async for each in stream
            ]  # fmt: skip
            whole = await stream.result()
        messages.append({"role": "assistant", "content": whole.text})
        tokens += whole.token_ids
        waits[0] += whole.speculation.draft_wait_us
        waits[1] += whole.speculation.verify_wait_us
    seconds = time.perf_counter() - began
    return Answered(tuple(tokens), tuple(rounds), seconds, waits[0] / 1e6, waits[1] / 1e6)
