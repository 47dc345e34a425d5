"""Log probabilities in OpenAI's two formats, and the prompt's in vLLM's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from paceline.speculation.messages import TokenLogprobs

LEAST = -9999.0  # stands for minus infinity, which JSON does not have; OpenAI's number
_INCOMPLETE = "\ufffd"

Texts = Callable[[int], str]


def completion_logprobs(
    tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], texts: Texts, offset: int
) -> dict[str, Any]:
    """Parallel lists; the likeliest tokens are told with the token itself, as OpenAI does.

    Args:
        offset: characters of the answer before these tokens.
    """
    offsets, written = [], [texts(token) for token in tokens]
    for text in written:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": written,
        "token_logprobs": [_finite(each.logprob) for each in logprobs],
        "top_logprobs": [
            {texts(other): _finite(value) for other, value in _with_own(token, each)}
            for token, each in zip(tokens, logprobs, strict=True)
        ],
        "text_offset": offsets,
    }


def chat_logprobs(
    tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], texts: Texts, offset: int
) -> dict[str, Any]:
    """One object per token. ``offset`` is not told here."""
    content = [
        _entry(token, each.logprob, texts)
        | {"top_logprobs": [_entry(other, value, texts) for other, value in _top(each)]}
        for token, each in zip(tokens, logprobs, strict=True)
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(prompt: Sequence[int], logprobs: Sequence[TokenLogprobs], texts: Texts) -> list[Any]:
    """vLLM's: null for the first token, then by token id. ``logprobs``: of the second token and those after it."""
    return [None] + [
        {
            str(other): {"logprob": _finite(value), "rank": rank, "decoded_token": texts(other)}
            for rank, other, value in _ranked(token, each)
        }
        for token, each in zip(prompt[1:], logprobs, strict=True)
    ]


def _top(each: TokenLogprobs) -> list[tuple[int, float]]:
    return list(zip(each.top_ids, each.top_logprobs, strict=True))


def _with_own(token: int, each: TokenLogprobs) -> list[tuple[int, float]]:
    top = _top(each)
    return top if token in each.top_ids else [*top, (token, each.logprob)]


def _ranked(token: int, each: TokenLogprobs) -> list[tuple[int, int, float]]:
    top = [(rank, other, value) for rank, (other, value) in enumerate(_top(each), start=1)]
    return top if token in each.top_ids else [(each.rank, token, each.logprob), *top]


def _entry(token: int, logprob: float, texts: Texts) -> dict[str, Any]:
    text = texts(token)
    # A token of some bytes of a character has no text of its own.
    return {"token": text, "logprob": _finite(logprob), "bytes": None if _INCOMPLETE in text else list(text.encode())}


def _finite(value: float) -> float:
    return max(value, LEAST)
