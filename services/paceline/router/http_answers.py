"""OpenAI's two answer formats, whole and in chunks, of one answer or several choices of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline.router.http_logprobs import Texts, chat_logprobs, completion_logprobs, prompt_logprobs
from paceline.router.http_metrics import Models, record, speculative_decoding, total
from paceline.router.http_requests import Wanted, parse_chat, parse_completion
from paceline.router.requests import Committed, Completed, Event, Started
from paceline.speculation.messages import FinishReason, TokenLogprobs

_FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
_FINGERPRINT_CHARS = 16

Logprobs = Callable[[Sequence[int], Sequence[TokenLogprobs], Texts, int], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one endpoint's answers look like."""

    prefix: str
    whole: str
    chunk: str
    parse: Callable[[Mapping[str, Any]], Wanted]
    whole_choice: Callable[[str], dict[str, Any]]
    chunk_choice: Callable[[str], dict[str, Any]]
    logprobs: Logprobs
    opening: dict[str, Any] | None
    """The choice of the first chunk, before any text."""
    closing: dict[str, Any]
    """The choice of the last one."""
    prompt_in_choice: bool
    """Whether the prompt's log probabilities are told in each choice, or once beside them."""


COMPLETION = Dialect(
    prefix="cmpl-",
    whole="text_completion",
    chunk="text_completion",
    parse=parse_completion,
    whole_choice=lambda text: {"text": text},
    chunk_choice=lambda text: {"text": text},
    logprobs=completion_logprobs,
    opening=None,
    closing={"text": ""},
    prompt_in_choice=True,
)
CHAT = Dialect(
    prefix="chatcmpl-",
    whole="chat.completion",
    chunk="chat.completion.chunk",
    parse=parse_chat,
    whole_choice=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    chunk_choice=lambda text: {"delta": {"content": text}},
    logprobs=chat_logprobs,
    opening={"delta": {"role": "assistant", "content": ""}},
    closing={"delta": {}},
    prompt_in_choice=False,
)


@dataclass(slots=True)
class _Choice:
    """One of the answers under way. Its chunks and its whole are told from the same fields."""

    index: int
    started: Started
    models: Models = field(default_factory=Models)
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of all tokens, or empty
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    told: int = 0  # tokens whose log probabilities went out in chunks …
    offset: int = 0  # … and the characters they have
    opened: bool = False  # its first chunk went out
    completed: Completed | None = None

    def add(self, event: Committed) -> None:
        self.models.add(event)
        self.text.append(event.text)
        self.tokens += event.tokens
        self.logprobs += event.logprobs
        self.prompt_logprobs = self.prompt_logprobs or event.prompt_logprobs

    @property
    def finish(self) -> str:
        assert self.completed is not None, f"choice {self.index} is not complete"
        return _FINISH[self.completed.finish.reason]


class Answer:
    """What one request is answered with, in one dialect.

    Args:
        wanted: what the body asked for.
        texts: for a model, what each of its tokens reads like.
    """

    def __init__(self, dialect: Dialect, wanted: Wanted, texts: Callable[[str], Texts]) -> None:
        self._dialect, self._count, self._include_usage, self._texts = dialect, wanted.n, wanted.include_usage, texts
        self._prompt_logprobs = wanted.sampling.prompt_logprobs is not None
        self._created = int(time.time())
        self._choices: dict[int, _Choice] = {}

    def take(self, index: int, event: Event) -> None:
        """Take an event of a choice."""
        if isinstance(event, Started):
            if index in self._choices:  # moved to another numerics class: what follows carries its fingerprint
                self._choices[index].started = event
            else:
                self._choices[index] = _Choice(index, event)
        elif isinstance(event, Committed):
            self._choices[index].add(event)
        else:
            self._choices[index].completed = event

    @property
    def complete(self) -> bool:
        """Whether every choice is."""
        done = sum(choice.completed is not None for choice in self._choices.values())
        return done == self._count

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = self._in_order()
        told = [self._choice(each, self._dialect.whole_choice("".join(each.text)), each.finish) for each in choices]
        body = self._envelope(self._dialect.whole, choices[0].started, told) | self._totals(choices)
        if self._prompt_logprobs:
            places = told if self._dialect.prompt_in_choice else [body]
            for choice, place in zip(choices, places, strict=False):
                texts = self._texts(choice.started.model)
                place["prompt_logprobs"] = prompt_logprobs(choice.started.prompt_tokens, choice.prompt_logprobs, texts)
        return body

    def chunks(self, index: int, event: Event) -> list[dict[str, Any]]:
        """What a stream tells of an event that was taken."""
        choice, dialect = self._choices[index], self._dialect
        if isinstance(event, Started):
            first, choice.opened = not choice.opened, True
            return [self._chunk(choice, dialect.opening)] if first and dialect.opening is not None else []
        if isinstance(event, Committed):
            return [self._chunk(choice, dialect.chunk_choice(event.text))] if event.text or event.logprobs else []
        out = [self._chunk(choice, dialect.closing, choice.finish)]
        if self.complete and self._include_usage:
            choices = self._in_order()
            out.append(self._envelope(dialect.chunk, choices[0].started, []) | self._totals(choices))
        return out

    def _in_order(self) -> list[_Choice]:
        return [self._choices[index] for index in sorted(self._choices)]

    def _chunk(self, choice: _Choice, content: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        told = self._choice(choice, content, finish)
        chunk = self._envelope(self._dialect.chunk, choice.started, [told])
        return chunk | {"usage": None} if self._include_usage else chunk

    def _choice(self, choice: _Choice, content: dict[str, Any], finish: str | None) -> dict[str, Any]:
        """With the log probabilities that were not told yet, if there are any."""
        logprobs, start = None, choice.told
        if choice.logprobs[start:]:
            texts, tokens = self._texts(choice.started.model), choice.tokens[start:]
            logprobs = self._dialect.logprobs(tokens, choice.logprobs[start:], texts, choice.offset)
            choice.told, choice.offset = len(choice.tokens), choice.offset + sum(len(texts(token)) for token in tokens)
        return {"index": choice.index, **content, "logprobs": logprobs, "finish_reason": finish}

    def _envelope(self, kind: str, started: Started, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._dialect.prefix + started.request_id,
            "object": kind,
            "created": self._created,
            "model": started.model,
            # The numerics class is what OpenAI's fingerprint is for: same class and seed, same text.
            "system_fingerprint": f"fp_{started.numerics_class[:_FINGERPRINT_CHARS]}",
            "choices": choices,
        }

    def _totals(self, choices: Sequence[_Choice]) -> dict[str, Any]:
        ends = [choice.completed for choice in choices if choice.completed is not None]
        prompt, completion = ends[0].prompt_tokens, sum(end.completion_tokens for end in ends)
        records = [record(each.started, end, each.models) for each, end in zip(choices, ends, strict=True)]
        return {
            "usage": {
                "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion
            },
            "metrics": {"speculative_decoding": speculative_decoding(total([end.stats for end in ends]))},
            "paceline": records[0] if len(records) == 1 else {"choices": records},
        }  # fmt: skip
