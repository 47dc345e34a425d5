"""What a request may ask for, and how it is put on the wire.

Obvious mistakes are refused here, in the server's own words, to spare a round trip; the server is the authority.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from paceline.v1 import common_pb2, generation_pb2

from paceline_client._errors import InvalidRequestError

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
            _require_int("speculation.max_draft_tokens", self.max_draft_tokens, 0, 64, "a whole number, 0 to 64")
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
        model=_text("model", options.get("model", "")),
        sampling=_sampling(options),
        request_id=_request_id(options.get("request_id", "")),
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
    _require_real(field, value, 0, math.inf, "seconds above 0")
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
        request.tokens.ids.extend(_token_ids("prompt", () if prompt is None else prompt))
        if not request.tokens.ids:
            raise _INVALID("prompt", expected="at least one token id", got=prompt)


def _message(message: Mapping[str, str]) -> generation_pb2.ChatMessage:
    if not isinstance(message, Mapping) or message.keys() != {"role", "content"}:
        raise _INVALID("messages", expected="mappings with role and content", got=message)
    return generation_pb2.ChatMessage(
        role=_text("messages.role", message["role"]), content=_text("messages.content", message["content"])
    )


def _sampling(options: GenerateOptions) -> common_pb2.SamplingOptions:
    sampling = common_pb2.SamplingOptions(
        stop=_stop(options.get("stop")),
        stop_token_ids=_stop_token_ids(options.get("stop_token_ids")),
    )
    if (temperature := options.get("temperature")) is not None:
        sampling.temperature = _require_real("temperature", temperature, 0, 100, "a number from 0 to 100")
    if (top_k := options.get("top_k")) is not None:
        sampling.top_k = _require_int("top_k", top_k, 0, 2**31, "a whole number, 0 for no limit")
    if (top_p := options.get("top_p")) is not None:
        sampling.top_p = _require_real("top_p", top_p, 0, 1, "a number above 0, up to 1", open_low=True)
    if (min_p := options.get("min_p")) is not None:
        sampling.min_p = _require_real("min_p", min_p, 0, 1, "a number from 0 to 1")
    if (seed := options.get("seed")) is not None:
        sampling.seed = _require_int("seed", seed, 0, 2**64 - 1, "a whole number from 0 to 2^64 - 1")
    if (max_tokens := options.get("max_tokens")) is not None:
        sampling.max_tokens = _require_int("max_tokens", max_tokens, 1, 2**31, "a whole number, 1 or more")
    if (ignore_eos := options.get("ignore_eos")) is not None:
        if not isinstance(ignore_eos, bool):
            raise _INVALID("ignore_eos", expected="True or False", got=ignore_eos)
        sampling.ignore_eos = ignore_eos
    return sampling


def _stop(texts: Sequence[str] | None) -> list[str]:
    if isinstance(texts, str):  # a sequence of its own characters, which nobody means
        raise _INVALID("stop", expected="a list of strings", got=texts, hint=f"write [{texts!r}]")
    stops = list(texts or ())
    if len(stops) > 16:
        raise _INVALID("stop", expected="at most 16 strings", got=len(stops))
    for text in stops:
        if not isinstance(text, str) or not 0 < len(text) <= 256:
            raise _INVALID("stop", expected="strings of 1 to 256 characters", got=text)
    return stops


def _stop_token_ids(ids: Sequence[int] | None) -> list[int]:
    stops = _token_ids("stop_token_ids", () if ids is None else ids)
    if len(stops) > 64:
        raise _INVALID("stop_token_ids", expected="at most 64 ids", got=len(stops))
    return stops


def _token_ids(field: str, ids: Iterable[int]) -> list[int]:
    out = []
    for item in ids:
        try:
            value = operator.index(item)  # takes the integers of array libraries too
        except TypeError:
            value = -1
        if isinstance(item, bool) or not 0 <= value < 2**32:
            raise _INVALID(field, expected="token ids", got=item)
        out.append(value)
    return out


def _request_id(value: str) -> str:
    if not _REQUEST_ID.fullmatch(_text("request_id", value)):
        raise _INVALID("request_id", expected="at most 128 of A-Z a-z 0-9 . _ : -", got=value[:160])
    return value


def _text(field: str, value: str) -> str:
    if not isinstance(value, str):
        raise _INVALID(field, expected="text", got=value)
    return value


def _require_real(field: str, value: float, low: float, high: float, expected: str, *, open_low: bool = False) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high or (open_low and value == low):
        raise _INVALID(field, expected=expected, got=value)
    return value


def _require_int(field: str, value: int, low: int, high: int, expected: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _INVALID(field, expected=expected, got=value)
    return value
