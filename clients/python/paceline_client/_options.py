"""What a request may ask for, and how it is put on the wire.

Obvious mistakes are refused here, in the server's own words, to spare a round trip; the server is the authority.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from paceline.v1 import generation_pb2

from paceline_client import _checks as checks
from paceline_client._errors import InvalidRequestError
from paceline_client._sampling import sampling_of

_INVALID = InvalidRequestError.of_field
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?:-[!-~]*)?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{0,128}")
_MODES = {
    "auto": generation_pb2.SPECULATION_MODE_AUTO,
    "off": generation_pb2.SPECULATION_MODE_OFF,
    "fixed": generation_pb2.SPECULATION_MODE_FIXED,
}


@dataclass(frozen=True, slots=True)
class Speculation:
    """How drafts are used. None of it changes the text, only how soon it comes.

    Raises InvalidRequestError if a field is wrong.
    """

    mode: Literal["auto", "off", "fixed"] = "auto"
    """auto: the server decides; off: plain decoding; fixed: always ask for ``max_draft_tokens``."""
    max_draft_tokens: int | None = None
    """K, draft tokens per round, 0 to 64; None for the server's choice. Required with mode fixed."""
    drafter: str = ""
    """A drafter by name, see ``Model.drafters``; empty for the server's choice."""

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise _INVALID("speculation.mode", expected="auto, off or fixed", got=self.mode)
        if self.max_draft_tokens is not None:
            checks.integer("speculation.max_draft_tokens", self.max_draft_tokens, 0, 64, "a whole number, 0 to 64")
        elif self.mode == "fixed":
            raise _INVALID("speculation.max_draft_tokens", expected="a value with speculation.mode fixed", got=None)
        if not isinstance(self.drafter, str) or len(self.drafter) > 64:
            raise _INVALID("speculation.drafter", expected="a name of at most 64 characters", got=self.drafter)


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of ``generate`` and ``stream``. What is left out (or None) is the server's default."""

    messages: Sequence[Mapping[str, str]] | None
    """A chat, each message with ``role`` and ``content``; instead of ``prompt``."""
    model: str
    """A model of ``models()``; empty for the only one."""
    temperature: float | None
    """0 to 100; 0 is greedy."""
    top_k: int | None
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float | None
    """Keep the smallest set of tokens with at least this mass, above 0, up to 1."""
    min_p: float | None
    """Drop tokens less likely than this times the likeliest, 0 to 1."""
    seed: int | None
    """Fixes the sampling noise, 0 to 2^64 - 1; drawn by the server, and reported in ``started``, when left out."""
    max_tokens: int | None
    """Most tokens to generate, 1 or more."""
    stop: Sequence[str] | None
    """Texts that end generation; not part of the output."""
    stop_token_ids: Sequence[int] | None
    """Token ids that end generation, beside the model's own."""
    ignore_eos: bool | None
    """Go on after the model's end-of-sequence token."""
    repetition_penalty: float | None
    """Divides the logits of tokens of prompt or output that are positive, multiplies others; above 0, up to 10."""
    presence_penalty: float | None
    """Comes off the logit of every token of the output, -2 to 2."""
    frequency_penalty: float | None
    """Comes off it as often as the output has the token, -2 to 2."""
    logit_bias: Mapping[int, float] | None
    """Token id -> what is added to its logit, -100 to 100."""
    min_tokens: int | None
    """No token that ends the answer before so many; a stop text may still end it."""
    bad_words: Sequence[Sequence[int]] | None
    """Token sequences that are never completed."""
    logprobs: int | None
    """Report the log probability of every token, and of so many of the likeliest ones (0 to 20) beside it."""
    prompt_logprobs: int | None
    """The same for the tokens of the prompt, from the second on."""
    verification_mode: Literal["agreement", "rejection"] | None
    """agreement: the same text whatever is drafted; rejection: more drafts accepted at temperatures above 0, and the
    text, though of the same distribution, depends on what was drafted."""
    relaxed_acceptance: float | None
    """Lossy: also accept draft tokens with at least this share of the likeliest token's probability, above 0, up to 1.
    ``lossy`` of the answer tells whether it changed a token."""
    json_schema: str | Mapping[str, Any] | None
    """The answer is JSON of this schema, as an object or its text. At most one of json_schema, regex and grammar."""
    regex: str | None
    """The answer matches this regular expression, as a whole."""
    grammar: str | None
    """The answer is of this grammar, written in Lark."""
    choice: int
    """Which of several answers under one seed this is, 0 to 127: each differs. For n answers make n calls."""
    speculation: Speculation | None
    """How drafts are used."""
    request_id: str
    """Names the answer in traces and in the audit log; chosen by the server when empty."""
    timeout: float | None
    """Seconds for the whole answer, retries included; None for the client's own."""
    traceparent: str
    """W3C trace context of the caller, passed on as it is."""


def build_request(prompt: str | Sequence[int] | None, options: GenerateOptions) -> generation_pb2.GenerateRequest:
    """The wire form of a request.

    Raises:
        InvalidRequestError: an argument is wrong.
        TypeError: an option has a name nobody knows.
    """
    unknown = options.keys() - GenerateOptions.__annotations__.keys()
    if unknown:
        known = ", ".join(sorted(GenerateOptions.__annotations__))
        raise TypeError(f"options: expected some of {known}; got {', '.join(sorted(unknown))}")
    request = generation_pb2.GenerateRequest(
        model=checks.text("model", options.get("model", "")),
        sampling=sampling_of(options),
        request_id=_request_id(options.get("request_id", "")),
        choice=checks.integer("choice", options.get("choice", 0), 0, 127, "a whole number from 0 to 127"),
    )
    _set_input(request, prompt, options.get("messages"))
    speculation = options.get("speculation")
    if speculation is not None:
        if not isinstance(speculation, Speculation):
            raise _INVALID("speculation", expected="a Speculation", got=speculation, hint='Speculation(mode="off")')
        request.speculation.mode = _MODES[speculation.mode]
        request.speculation.drafter = speculation.drafter
        if speculation.max_draft_tokens is not None:
            request.speculation.max_draft_tokens = speculation.max_draft_tokens
    return request


def check_timeout(value: float, field: str = "timeout") -> float:
    """A timeout in seconds, or InvalidRequestError."""
    checks.real(field, value, 0, math.inf, "seconds above 0")
    if value == 0:
        raise _INVALID(field, expected="seconds above 0", got=value)
    return value


def check_traceparent(value: str) -> str:
    """A W3C traceparent (or an empty string), or InvalidRequestError."""
    if not isinstance(value, str) or (value and not _TRACEPARENT.fullmatch(value)):
        raise _INVALID(
            "traceparent",
            expected="version-traceid-parentid-flags in lower-case hex",
            got=value,
            hint="pass the W3C traceparent header as it came",
        )
    return value


def _set_input(
    request: generation_pb2.GenerateRequest,
    prompt: str | Sequence[int] | None,
    messages: Sequence[Mapping[str, str]] | None,
) -> None:
    if (prompt is None) == (messages is None):
        got = "neither" if prompt is None else "both"
        raise InvalidRequestError(f"prompt: expected either prompt or messages, got {got}; pass one of them")
    if messages is not None:
        request.chat.messages.extend(_message(message) for message in messages)
        if not request.chat.messages:
            raise _INVALID("messages", expected="at least one message", got=messages)
    elif isinstance(prompt, str):
        request.text = prompt
    elif isinstance(prompt, (bytes, Mapping)):
        raise _INVALID("prompt", expected="text or token ids", got=type(prompt).__name__, hint="decode bytes first")
    else:
        request.tokens.ids.extend(checks.token_ids("prompt", () if prompt is None else prompt))
        if not request.tokens.ids:
            raise _INVALID("prompt", expected="at least one token id", got=prompt)


def _message(message: Mapping[str, str]) -> generation_pb2.ChatMessage:
    if not isinstance(message, Mapping) or message.keys() != {"role", "content"}:
        raise _INVALID("messages", expected="mappings with role and content", got=message)
    return generation_pb2.ChatMessage(
        role=checks.text("messages.role", message["role"]), content=checks.text("messages.content", message["content"])
    )


def _request_id(value: str) -> str:
    if not _REQUEST_ID.fullmatch(checks.text("request_id", value)):
        raise _INVALID("request_id", expected="at most 128 of A-Z a-z 0-9 . _ : -", got=value[:160])
    return value
