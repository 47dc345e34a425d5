"""From answers to samples: what was read and said, with the target's hidden states at every token of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.cache.target import Sample
from paceline.engine.bits import bf16_bits
from paceline.engine.interface import Engine, Hidden, Slice, StepPlan, Wanted
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.params import SamplingParams
from paceline.training.capture.answers import Answer

_GREEDY = SamplingParams(temperature=0)
PART_BITS = 40  # of a key: the answer's place in its file; the file's number is above them


@dataclass(slots=True)
class Script:
    """The tokens of a sample: one conversation, and which of its tokens are the target's own."""

    key: int
    tokens: tuple[int, ...]
    own: list[range]

    def loss_mask(self, length: int) -> NDArray[np.uint8]:
        mask = np.zeros(len(self.tokens), np.uint8)
        for span in self.own:
            mask[span.start : span.stop] = 1
        return mask[:length]


def scripts(answers: Sequence[Answer], *, part: int = 0) -> Iterator[Script]:
    """The samples that answers make, whole conversations only.

    A turn that was read word for word when the next one was answered is in one sample with it. It isn't where the
    tokens of an answer's text are others than those it was said in; then each has a sample of its own.

    Args:
        answers: in the order of their file.
        part: the file's number, which makes keys differ between files.
    """
    talks: dict[tuple[str, int], list[tuple[int, Answer]]] = {}
    for place, answer in enumerate(answers):
        talks.setdefault((answer.conversation, answer.choice), []).append((place, answer))
    for talk in talks.values():
        if talk[-1][1].last:
            yield from _joined(talk, part << PART_BITS)


def _joined(talk: Iterable[tuple[int, Answer]], first_key: int) -> Iterator[Script]:
    script: Script | None = None
    for place, answer in talk:
        tokens = answer.prompt + answer.tokens
        own = range(len(answer.prompt), len(tokens))
        if script is not None and tokens[: len(script.tokens)] == script.tokens:
            script = Script(script.key, tokens, [*script.own, own])
        else:
            if script is not None:
                yield script
            script = Script(first_key + place, tokens, [own])
    if script is not None:
        yield script


@dataclass(slots=True)
class _Reading:
    """A script the target is reading."""

    script: Script
    length: int
    parts: list[Hidden] = field(default_factory=list)
    held: int = 0


class Reader:
    """Has the target read scripts, several in a step.

    Args:
        engine: driven by this reader alone.
        layers: whose outputs are wanted, ascending; see ``engine.taps``.
        step_tokens: rows of a step.
        max_length: tokens of a sample; the rest is cut off.
    """

    def __init__(self, engine: Engine, layers: tuple[int, ...], *, step_tokens: int, max_length: int) -> None:
        self._engine, self._wanted = engine, Wanted(layers, last=True)
        self._step_tokens, self._max_length = step_tokens, max_length
        self._steps = 0

    def samples(self, found: Iterable[Script]) -> Iterator[Sample]:
        """The scripts' samples, in order.

        Raises InvalidRequest if a script needs more KV positions than the engine has, and what its steps raise.
        """
        coming, under_way = deque[_Reading](), deque[_Reading]()
        source = iter(found)
        while True:
            pieces = list(self._pieces(source, coming, under_way))
            if not pieces:
                return
            self._steps += 1
            result = self._engine.step(StepPlan(self._steps, tuple(piece for _, piece in pieces), self._wanted))
            for (reading, piece), each in zip(pieces, result.by_slice(), strict=True):
                assert each.hidden is not None, piece.session_id
                reading.held = piece.end
                reading.parts.append(each.hidden)
            while under_way and under_way[0].held == under_way[0].length:
                yield self._finish(under_way.popleft())

    def _pieces(
        self, source: Iterator[Script], coming: deque[_Reading], under_way: deque[_Reading]
    ) -> Iterator[tuple[_Reading, Slice]]:
        left = self._step_tokens
        for reading in under_way:
            if rows := min(reading.length - reading.held, left):
                yield reading, self._piece(reading, rows)
                left -= rows
        while left:
            if not coming:
                script = next(source, None)
                if script is None:
                    return
                coming.append(_Reading(script, min(len(script.tokens), self._max_length)))
            reading = coming[0]
            if not self._engine.reserve(_name(reading), reading.length):
                if not under_way:
                    raise InvalidRequest("kv_tokens", expected=f"{reading.length}", got=self._engine.info.kv_tokens)
                return
            under_way.append(coming.popleft())
            rows = min(reading.length, left)
            yield reading, self._piece(reading, rows)
            left -= rows

    def _piece(self, reading: _Reading, rows: int) -> Slice:
        tokens = reading.script.tokens[reading.held : reading.held + rows]
        return Slice(_name(reading), reading.held, tokens, 0, _GREEDY, 1, hidden=True)

    def _finish(self, reading: _Reading) -> Sample:
        self._engine.free(_name(reading), keep=False)
        return Sample(
            key=reading.script.key,
            input_ids=np.array(reading.script.tokens[: reading.length], np.int32),
            attention_mask=np.ones(reading.length, np.uint8),
            loss_mask=reading.script.loss_mask(reading.length),
            hidden=bf16_bits(torch.cat([part.layers for part in reading.parts])),
            last_hidden=bf16_bits(torch.cat([_last(part) for part in reading.parts])),
        )


def _last(part: Hidden) -> Tensor:
    assert part.last is not None
    return part.last


def _name(reading: _Reading) -> str:
    return f"script {reading.script.key}"
