"""OpenAI's two answer formats, whole and in chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paceline.router.http_metrics import Models, record, speculative_decoding
from paceline.router.http_requests import Wanted, parse_chat, parse_completion
from paceline.router.requests import Completed, Started
from paceline.speculation.messages import FinishReason

_FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
_FINGERPRINT_CHARS = 16


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one endpoint's answers look like."""

    prefix: str
    whole: str
    chunk: str
    parse: Callable[[Mapping[str, Any]], Wanted]
    whole_choice: Callable[[str], dict[str, Any]]
    chunk_choice: Callable[[str], dict[str, Any]]
    opening: dict[str, Any] | None
    """The choice of the first chunk, before any text."""
    closing: dict[str, Any]
    """The choice of the last one."""


COMPLETION = Dialect(
    prefix="cmpl-",
    whole="text_completion",
    chunk="text_completion",
    parse=parse_completion,
    whole_choice=lambda text: {"text": text},
    chunk_choice=lambda text: {"text": text},
    opening=None,
    closing={"text": ""},
)
CHAT = Dialect(
    prefix="chatcmpl-",
    whole="chat.completion",
    chunk="chat.completion.chunk",
    parse=parse_chat,
    whole_choice=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    chunk_choice=lambda text: {"delta": {"content": text}},
    opening={"delta": {"role": "assistant", "content": ""}},
    closing={"delta": {}},
)


@dataclass(slots=True)
class Answer:
    """One answer under way, in one dialect."""

    dialect: Dialect
    started: Started
    include_usage: bool
    models: Models = field(default_factory=Models)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, completed: Completed) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choice = self.dialect.whole_choice(text)
        return self._envelope(self.dialect.whole, choice, _FINISH[completed.finish.reason]) | self._totals(completed)

    def opening(self) -> dict[str, Any] | None:
        """The chunk before any text, if the dialect has one."""
        return None if self.dialect.opening is None else self._chunk(self.dialect.opening)

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk with text."""
        return self._chunk(self.dialect.chunk_choice(text))

    def closing(self, completed: Completed) -> dict[str, Any]:
        """The chunk that says why the answer ended."""
        return self._chunk(self.dialect.closing, _FINISH[completed.finish.reason])

    def trailing(self, completed: Completed) -> dict[str, Any] | None:
        """The chunk of totals after it, if they were asked for."""
        if not self.include_usage:
            return None
        return self._envelope(self.dialect.chunk, None) | self._totals(completed)

    def _chunk(self, choice: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        chunk = self._envelope(self.dialect.chunk, choice, finish)
        return chunk | {"usage": None} if self.include_usage else chunk

    def _envelope(self, kind: str, choice: dict[str, Any] | None, finish: str | None = None) -> dict[str, Any]:
        # The numerics class is what OpenAI's fingerprint is for: same class and seed, same text.
        fingerprint = f"fp_{self.started.numerics_class[:_FINGERPRINT_CHARS]}"
        choices = [] if choice is None else [{"index": 0, **choice, "logprobs": None, "finish_reason": finish}]
        return {
            "id": self.dialect.prefix + self.started.request_id,
            "object": kind,
            "created": self.created,
            "model": self.started.model,
            "system_fingerprint": fingerprint,
            "choices": choices,
        }

    def _totals(self, completed: Completed) -> dict[str, Any]:
        prompt, completion = completed.prompt_tokens, completed.completion_tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return {
            "usage": usage,
            "metrics": {"speculative_decoding": speculative_decoding(completed.stats)},
            "paceline": record(self.started, completed, self.models),
        }
