"""Bodies of OpenAI's endpoints -> requests. Closed: a field nobody knows is refused by name, as is a wrong type.

Beyond OpenAI's fields: ``top_k``, ``min_p``, ``stop_token_ids``, ``ignore_eos``, ``verification_mode``,
``relaxed_acceptance``, vLLM's ``repetition_penalty``, ``min_tokens``, ``bad_words``, ``prompt_logprobs`` and structured
output (``http_grammar``), and ``speculation: {mode, max_draft_tokens, drafter}``; ``seed`` is unsigned, 64 bit. Ranges
are checked where the request is resolved (``SamplingParams``), once for both ingresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from pydantic_core import PydanticCustomError

from paceline.router.http_fields import (
    CHAT_NEUTRAL,
    COMPLETION_NEUTRAL,
    MESSAGE_NEUTRAL,
    biases,
    brief,
    text_of,
    token_ids,
    without_neutral,
    words,
)
from paceline.router.http_grammar import grammar_of
from paceline.router.requests import MAX_CHOICES, SamplingRequest
from paceline.speculation.errors import InvalidRequest, Unsupported
from paceline.speculation.params import SpeculationMode, SpeculationParams, VerificationMode

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for completions; chats run to the server's limit
MAX_MESSAGES = 4096
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_PART_SEPARATOR = "\n"  # between the text parts of one message, as vLLM joins them


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a body asks for."""

    model: str
    sampling: SamplingRequest
    speculation: SpeculationParams
    stream: bool
    include_usage: bool
    n: int = 1  # choices
    text: str | None = None
    tokens: tuple[int, ...] | None = None
    messages: tuple[tuple[str, str], ...] | None = None


def _check_text(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise PydanticCustomError("text", "text, without lone surrogates") from None
    return value


_Text = Annotated[str, AfterValidator(_check_text)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _StreamOptions(_Closed):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None  # padding against traffic analysis, which we do not do


class _Speculation(_Closed):
    mode: Literal["auto", "off", "fixed"] | None = None
    max_draft_tokens: int | None = None
    drafter: _Text | None = None


class _Body(_Closed):
    """What both endpoints take."""

    model: _Text = ""
    max_tokens: int | None = None
    temperature: FiniteFloat | None = None
    top_p: FiniteFloat | None = None
    top_k: int | None = None
    min_p: FiniteFloat | None = None
    presence_penalty: FiniteFloat | None = None
    frequency_penalty: FiniteFloat | None = None
    repetition_penalty: FiniteFloat | None = None
    logit_bias: Any = None
    min_tokens: int | None = None
    bad_words: Any = None
    prompt_logprobs: int | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    seed: int | None = None
    stop: Any = None
    stop_token_ids: Any = None
    ignore_eos: bool | None = None
    verification_mode: Literal["agreement", "rejection"] | None = None
    relaxed_acceptance: FiniteFloat | None = None
    speculation: _Speculation | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    # Without effect on the answer:
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class _Completion(_Body):
    prompt: Any
    best_of: int | None = None
    logprobs: int | None = None


class _Message(_Closed):
    role: str
    content: Any


class _Chat(_Body):
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


ModelT = TypeVar("ModelT", bound=BaseModel)


def parse_completion(body: Mapping[str, Any]) -> Wanted:
    """The body of ``/v1/completions``. Raises InvalidRequest naming the field."""
    parsed = _validate(_Completion, without_neutral(body, COMPLETION_NEUTRAL))
    text, tokens = _prompt(parsed.prompt)
    max_tokens = COMPLETION_MAX_TOKENS if parsed.max_tokens is None else parsed.max_tokens
    if parsed.best_of is not None and parsed.best_of != (parsed.n or 1):
        hint = "every choice is drawn by itself, and none is thrown away"
        raise InvalidRequest("best_of", expected=f"n, {parsed.n or 1}", got=parsed.best_of, hint=hint)
    return _wanted(parsed, max_tokens, parsed.logprobs, text=text, tokens=tokens)


def parse_chat(body: Mapping[str, Any]) -> Wanted:
    """The body of ``/v1/chat/completions``. Raises InvalidRequest naming the field."""
    parsed = _validate(_Chat, without_neutral(body, CHAT_NEUTRAL))
    messages = tuple(_message(message, f"messages.{index}") for index, message in enumerate(parsed.messages))
    old, new = parsed.max_tokens, parsed.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequest("max_tokens", expected="max_completion_tokens alone, or the same value", got=old)
    if parsed.top_logprobs and not parsed.logprobs:
        raise InvalidRequest("top_logprobs", expected="logprobs true beside it", got=parsed.top_logprobs)
    logprobs = (parsed.top_logprobs or 0) if parsed.logprobs else None
    return _wanted(parsed, old if new is None else new, logprobs, messages=messages)


def _wanted(
    body: _Body,
    max_tokens: int | None,
    logprobs: int | None,
    *,
    text: str | None = None,
    tokens: tuple[int, ...] | None = None,
    messages: tuple[tuple[str, str], ...] | None = None,
) -> Wanted:
    options = body.stream_options
    if options is not None and not body.stream:
        raise InvalidRequest("stream_options", expected="stream true beside it", got=f"stream {body.stream}")
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs", expected="stream false beside it", got=body.prompt_logprobs)
    mode = body.verification_mode
    return Wanted(
        model=body.model,
        sampling=SamplingRequest(
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            min_p=body.min_p,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            repetition_penalty=body.repetition_penalty,
            logit_bias=biases(body.logit_bias),
            min_tokens=body.min_tokens,
            bad_texts=words(body.bad_words),
            logprobs=logprobs,
            prompt_logprobs=body.prompt_logprobs,
            seed=body.seed,
            max_tokens=max_tokens,
            stop=_stop(body.stop),
            stop_token_ids=() if body.stop_token_ids is None else token_ids(body.stop_token_ids, "stop_token_ids"),
            ignore_eos=body.ignore_eos,
            verification_mode=VerificationMode[mode.upper()] if mode else None,
            relaxed_acceptance=body.relaxed_acceptance,
            grammar=grammar_of(body.response_format, body.structured_outputs, _guided(body)),
        ),
        speculation=_speculation(body.speculation or _Speculation()),
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        n=body.n or 1,
        text=text,
        tokens=tokens,
        messages=messages,
    )


def _guided(body: _Body) -> dict[str, Any]:
    names = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
    return {name: getattr(body, name) for name in names}


def _prompt(value: object) -> tuple[str | None, tuple[int, ...] | None]:
    """Text or token ids; a list of one prompt is that prompt."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        if len(value) > 1:
            raise Unsupported("prompt", got=f"{len(value)} prompts", hint="send one request per prompt")
        value = value[0]
    if isinstance(value, str):
        return text_of(value, "prompt"), None
    if not isinstance(value, list) or not value:
        raise InvalidRequest("prompt", expected="a string or a list of token ids", got=brief(value))
    return None, token_ids(value, "prompt")


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    texts = value if isinstance(value, list) else [value]
    return tuple(text_of(text, "stop") for text in texts)


def _speculation(body: _Speculation) -> SpeculationParams:
    return SpeculationParams(
        mode=SpeculationMode(body.mode or "auto"), max_draft_tokens=body.max_draft_tokens, drafter=body.drafter or ""
    )


def _message(message: Mapping[str, Any], path: str) -> tuple[str, str]:
    parsed = _validate(_Message, without_neutral(message, MESSAGE_NEUTRAL, f"{path}."), f"{path}.")
    if parsed.role in {"tool", "function"}:
        raise Unsupported(f"{path}.role", got=parsed.role)
    if parsed.role not in _ROLES:
        expected = "one of " + ", ".join(_ROLES)
        raise InvalidRequest(f"{path}.role", expected=expected, got=brief(parsed.role))
    return _ROLES[parsed.role], _content(parsed.content, f"{path}.content")


def _content(value: object, field: str) -> str:
    if not isinstance(value, list):
        return text_of(value, field)
    return _PART_SEPARATOR.join(_part(part, f"{field}.{index}") for index, part in enumerate(value))


def _part(part: object, field: str) -> str:
    if not isinstance(part, dict):
        raise InvalidRequest(field, expected="a content part", got=brief(part))
    kind = part.get("type")
    if kind in {"image_url", "input_audio", "file", "refusal"}:
        raise Unsupported(f"{field}.type", got=kind)
    if kind != "text" or set(part) != {"type", "text"}:
        raise InvalidRequest(field, expected='{"type": "text", "text": …}', got=brief(sorted(part)))
    return text_of(part["text"], f"{field}.text")


def _validate(kind: type[ModelT], values: Mapping[str, Any], path: str = "") -> ModelT:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(brief(path + (".".join(str(part) for part in first["loc"]) or "body")))
        if first["type"] == "extra_forbidden":
            raise InvalidRequest(field, expected="a field this API knows", got=field) from None
        got = "nothing" if first["type"] == "missing" else brief(first["input"])
        raise InvalidRequest(field, expected=_expectation(str(first["msg"])), got=got) from None


def _expectation(message: str) -> str:
    """pydantic's "Input should be a valid integer" as the end of "expected …"."""
    return message.removeprefix("Input should be ").replace("Field required", "a value")
