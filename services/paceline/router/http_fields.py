"""Fields of OpenAI's API that this version does not do: refused by name unless their value asks for nothing.

A field that would change the answer is never ignored. Fields of the API that can't change it (``user``, ``metadata``)
are part of the models in ``http_requests``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from paceline.router.requests import BAD_WORD_FORMS
from paceline.speculation.errors import InvalidRequest, Unsupported
from paceline.speculation.params import MAX_BAD_WORDS, MAX_STOP_STRING_CHARS

# Field -> the values that ask for nothing.
_BOTH: dict[str, Sequence[object]] = {
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
}
COMPLETION_NEUTRAL: dict[str, Sequence[object]] = {
    **_BOTH,
    "echo": (None, False),
    "suffix": (None, ""),
}
CHAT_NEUTRAL: dict[str, Sequence[object]] = {
    **_BOTH,
    "audio": (None,),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "parallel_tool_calls": (None, True, False),  # says how tools are called, and there are none
    "prediction": (None,),
    "prompt_cache_options": (None,),
    "prompt_cache_retention": (None, "in_memory"),
    "reasoning_effort": (None, "none"),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
MESSAGE_NEUTRAL: dict[str, Sequence[object]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "name": (None,),
    "refusal": (None,),
    "tool_calls": (None, []),
    "tool_call_id": (None,),
}
_BRIEF_CHARS = 80
_TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}", re.ASCII)


def without_neutral(body: Mapping[str, Any], neutral: Mapping[str, Sequence[object]], path: str = "") -> dict[str, Any]:
    """The body without fields whose value asks for nothing. Raises Unsupported for one that asks."""
    for name, values in neutral.items():
        if name in body and not _among(body[name], values):
            raise Unsupported(path + name, got=brief(body[name]))
    return {name: value for name, value in body.items() if name not in neutral}


def brief(value: object) -> object:
    """A value fit for an error message: a caller's megabyte is not sent back."""
    if isinstance(value, str):
        return value if len(value) <= _BRIEF_CHARS else value[:_BRIEF_CHARS] + "…"
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**128):
        return value
    text = f"a {type(value).__name__}"
    return f"{text} of {len(value)}" if isinstance(value, list | dict) else text


def text_of(value: object, field: str) -> str:
    """A string that is text."""
    if not isinstance(value, str):
        raise InvalidRequest(field, expected="a string", got=brief(value))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(field, expected="text", got="a lone surrogate") from None
    return value


def token_ids(value: object, field: str) -> tuple[int, ...]:
    """A list of token ids."""
    if not isinstance(value, list):
        raise InvalidRequest(field, expected="a list of token ids", got=brief(value))
    for token in value:
        if type(token) is not int or not 0 <= token < 2**32:
            raise InvalidRequest(field, expected="token ids, whole numbers from 0 to 2^32 - 1", got=brief(token))
    return tuple(value)


def biases(value: object) -> tuple[tuple[int, float], ...]:
    """``logit_bias``: an object whose keys are token ids, written as JSON writes keys. In the order of the ids."""
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise InvalidRequest("logit_bias", expected="an object from token ids to numbers", got=brief(value))
    out: dict[int, float] = {}
    for key, bias in value.items():
        if not _TOKEN_ID.fullmatch(key) or int(key) >= 2**32:
            raise InvalidRequest("logit_bias", expected="token ids as keys", got=brief(key))
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise InvalidRequest("logit_bias", expected="numbers from -100 to 100", got=brief(bias))
        out[int(key)] = float(bias)
    return tuple(sorted(out.items()))


def words(value: object) -> tuple[str, ...]:
    """``bad_words``: strings, as many and as long as can be refused."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_BAD_WORDS // BAD_WORD_FORMS:
        expected = f"a list of at most {MAX_BAD_WORDS // BAD_WORD_FORMS} strings"
        raise InvalidRequest("bad_words", expected=expected, got=brief(value))
    for word in value:
        if not text_of(word, "bad_words").strip() or len(word) > MAX_STOP_STRING_CHARS:
            expected = f"words of 1 to {MAX_STOP_STRING_CHARS} characters"
            raise InvalidRequest("bad_words", expected=expected, got=brief(word))
    return tuple(value)


def _among(value: object, values: Sequence[object]) -> bool:
    # 1 == True and 0 == False in Python; in JSON they are not the same.
    return any(type(value) is type(neutral) and value == neutral for neutral in values)
