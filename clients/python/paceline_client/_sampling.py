"""Sampling options: checked, and put on the wire."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from paceline.v1 import common_pb2

from paceline_client import _checks as checks
from paceline_client._errors import InvalidRequestError

_INVALID = InvalidRequestError.of_field
_ABOVE_0 = math.ulp(0.0)  # the least number above 0

_MODES = {
    "agreement": common_pb2.VERIFICATION_MODE_AGREEMENT,
    "rejection": common_pb2.VERIFICATION_MODE_REJECTION,
}
# Option -> least, most, what is expected.
_REALS: dict[str, tuple[float, float, str]] = {
    "temperature": (0, 100, "a number from 0 to 100"),
    "top_p": (_ABOVE_0, 1, "a number above 0, up to 1"),
    "min_p": (0, 1, "a number from 0 to 1"),
    "repetition_penalty": (_ABOVE_0, 10, "above 0, up to 10"),
    "presence_penalty": (-2, 2, "a number from -2 to 2"),
    "frequency_penalty": (-2, 2, "a number from -2 to 2"),
    "relaxed_acceptance": (_ABOVE_0, 1, "a number above 0, up to 1"),
}
_INTS: dict[str, tuple[int, int, str]] = {
    "top_k": (0, 2**31, "a whole number, 0 for no limit"),
    "seed": (0, 2**64 - 1, "a whole number from 0 to 2^64 - 1"),
    "max_tokens": (1, 2**31, "a whole number, 1 or more"),
    "min_tokens": (0, 2**31, "a whole number up to max_tokens"),
    "logprobs": (0, 20, "a whole number from 0 to 20"),
    "prompt_logprobs": (0, 20, "a whole number from 0 to 20"),
}

_GRAMMARS = {"json_schema": "json_schema", "regex": "regex", "grammar": "lark"}  # option -> wire


def sampling_of(options: Mapping[str, Any]) -> common_pb2.SamplingOptions:
    """The wire form of what an answer's options say about sampling. Raises InvalidRequestError."""
    sampling = common_pb2.SamplingOptions(
        stop=_stop(options.get("stop")),
        stop_token_ids=_stop_token_ids(options.get("stop_token_ids")),
        logit_bias=_logit_bias(options.get("logit_bias")),
        bad_words=[common_pb2.TokenSequence(ids=word) for word in _bad_words(options.get("bad_words"))],
        grammar=_grammar(options),
    )
    for name, (low, high, expected) in _REALS.items():
        if options.get(name) is not None:
            setattr(sampling, name, checks.real(name, options[name], low, high, expected))
    for name, (least, most, expected) in _INTS.items():
        if options.get(name) is not None:
            setattr(sampling, name, checks.integer(name, options[name], least, most, expected))
    if (ignore_eos := options.get("ignore_eos")) is not None:
        if not isinstance(ignore_eos, bool):
            raise _INVALID("ignore_eos", expected="True or False", got=ignore_eos)
        sampling.ignore_eos = ignore_eos
    if (mode := options.get("verification_mode")) is not None:
        if mode not in _MODES:
            raise _INVALID("verification_mode", expected="agreement or rejection", got=mode)
        sampling.verification_mode = _MODES[mode]
    return sampling


def _grammar(options: Mapping[str, Any]) -> common_pb2.Grammar | None:
    given = [name for name in _GRAMMARS if options.get(name) is not None]
    if len(given) > 1:
        raise _INVALID(given[1], expected=f"at most one of {', '.join(_GRAMMARS)}", got=" and ".join(given))
    if not given:
        return None
    (name,) = given
    source = _schema(options[name]) if name == "json_schema" else checks.text(name, options[name])
    if not 0 < len(source) <= 65536:
        raise _INVALID(name, expected="1 to 65536 characters", got=f"{len(source)} characters")
    return common_pb2.Grammar(**{_GRAMMARS[name]: source})


def _schema(value: str | Mapping[str, Any]) -> str:
    if not isinstance(value, Mapping):
        return checks.text("json_schema", value)
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise _INVALID("json_schema", expected="what JSON can hold", got=str(error)) from None


def _logit_bias(biases: Mapping[int, float] | None) -> dict[int, float]:
    if biases is not None and not isinstance(biases, Mapping):
        raise _INVALID("logit_bias", expected="a mapping from token ids to numbers", got=biases)
    values = dict(biases or {})
    if len(values) > 1024:
        raise _INVALID("logit_bias", expected="at most 1024 tokens", got=len(values))
    tokens = checks.token_ids("logit_bias", values)
    expected = "numbers from -100 to 100"
    return {
        token: checks.real("logit_bias", bias, -100, 100, expected)
        for token, bias in zip(tokens, values.values(), strict=True)
    }


def _bad_words(words: Sequence[Sequence[int]] | None) -> list[list[int]]:
    sequences = [] if words is None else list(words)
    if any(isinstance(word, (str, bytes)) or not isinstance(word, Sequence) for word in sequences):
        hint = "only the server's HTTP interface takes words: it knows the tokenizer"
        raise _INVALID("bad_words", expected="sequences of token ids", got=words, hint=hint)
    if len(sequences) > 256 or not all(0 < len(word) <= 32 for word in sequences):
        expected = "at most 256 sequences of 1 to 32 tokens"
        raise _INVALID("bad_words", expected=expected, got=[len(word) for word in sequences[:256]])
    return [checks.token_ids("bad_words", word) for word in sequences]


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
    stops = checks.token_ids("stop_token_ids", () if ids is None else ids)
    if len(stops) > 64:
        raise _INVALID("stop_token_ids", expected="at most 64 ids", got=len(stops))
    return stops
