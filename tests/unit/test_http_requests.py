"""Fields of OpenAI's endpoints: what is taken, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from paceline.router.http_requests import COMPLETION_MAX_TOKENS, parse_chat, parse_completion
from paceline.speculation.errors import InvalidRequest, Unsupported
from paceline.speculation.params import VerificationMode

COMPLETION = {"prompt": "x"}
CHAT = {"messages": [{"role": "user", "content": "x"}]}

BOTH_UNSUPPORTED: list[tuple[str, Any]] = [
    ("store", True),
    ("service_tier", "flex"),
]
COMPLETION_UNSUPPORTED: list[tuple[str, Any]] = [
    *BOTH_UNSUPPORTED,
    ("echo", True),
    ("suffix", "end"),
]
CHAT_UNSUPPORTED: list[tuple[str, Any]] = [
    *BOTH_UNSUPPORTED,
    ("audio", {"voice": "x"}),
    ("function_call", {"name": "f"}),
    ("functions", [{"name": "f"}]),
    ("modalities", ["text", "audio"]),
    ("moderation", {"model": "x"}),
    ("prediction", {"type": "content", "content": "x"}),
    ("prompt_cache_options", {}),
    ("prompt_cache_retention", "24h"),
    ("reasoning_effort", "high"),
    ("tool_choice", "required"),
    ("tools", [{"type": "function"}]),
    ("verbosity", "high"),
    ("web_search_options", {}),
]


@pytest.mark.parametrize(("name", "value"), COMPLETION_UNSUPPORTED)
def test_a_completion_field_not_offered_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(Unsupported) as caught:
        parse_completion(COMPLETION | {name: value})
    assert caught.value.field == name


@pytest.mark.parametrize(("name", "value"), CHAT_UNSUPPORTED)
def test_a_chat_field_not_offered_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(Unsupported) as caught:
        parse_chat(CHAT | {name: value})
    assert caught.value.field == name


def test_values_that_ask_for_nothing_are_taken() -> None:
    nothing = {"n": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "store": False, "user": "u"}
    parse_completion(COMPLETION | nothing | {"best_of": 1, "echo": False, "logprobs": None, "suffix": None})
    more = {"logprobs": False, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}}
    also = {"metadata": {"a": "b"}, "parallel_tool_calls": True, "functions": None, "modalities": ["text"]}
    parse_chat(CHAT | nothing | more | also | {"safety_identifier": "s", "prompt_cache_key": "k"})


def test_every_field_of_openais_client_is_known() -> None:
    """Taken, refused by name or without effect; none is merely unheard of."""
    from openai.types import chat, completion_create_params

    known_chat: Any = chat.completion_create_params.CompletionCreateParamsStreaming.__annotations__
    known_completion: Any = completion_create_params.CompletionCreateParamsStreaming.__annotations__
    for names, body, parse in ((known_chat, CHAT, parse_chat), (known_completion, COMPLETION, parse_completion)):
        for name in set(names) - {"messages", "prompt", "model"}:
            parse(body | {name: None})


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"bogus": 1}, "bogus"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"seed": 0.5}, "seed"),
    ({"stream": 1}, "stream"),
    ({"model": 5}, "model"),
    ({"model": "\ud800"}, "model"),
    ({"stop": [5]}, "stop"),
    ({"stop": {"a": 1}}, "stop"),
    ({"stop": "\ud800"}, "stop"),
    ({"stop_token_ids": "5"}, "stop_token_ids"),
    ({"stop_token_ids": [True]}, "stop_token_ids"),
    ({"stop_token_ids": [2**32]}, "stop_token_ids"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"bogus": True}}, "stream_options.bogus"),
    ({"verification_mode": "trust"}, "verification_mode"),
    ({"speculation": {"mode": "on"}}, "speculation.mode"),
    ({"speculation": {"k": 4}}, "speculation.k"),
    ({"speculation": {"mode": "fixed"}}, "speculation.max_draft_tokens"),
    ({"speculation": {"max_draft_tokens": 65}}, "speculation.max_draft_tokens"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": True}, "n"),
    ({"presence_penalty": "much"}, "presence_penalty"),
    ({"repetition_penalty": float("nan")}, "repetition_penalty"),
    ({"min_tokens": 0.5}, "min_tokens"),
    ({"prompt_logprobs": True}, "prompt_logprobs"),
    ({"stream": True, "prompt_logprobs": 0}, "prompt_logprobs"),
    ({"logit_bias": [5]}, "logit_bias"),
    ({"logit_bias": {"five": 1}}, "logit_bias"),
    ({"logit_bias": {"05": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {str(2**32): 1}}, "logit_bias"),
    ({"logit_bias": {"5": True}}, "logit_bias"),
    ({"logit_bias": {"5": float("nan")}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"bad_words": "word"}, "bad_words"),
    ({"bad_words": [5]}, "bad_words"),
    ({"bad_words": [" "]}, "bad_words"),
    ({"bad_words": ["x" * 257]}, "bad_words"),
    ({"bad_words": ["x"] * 129}, "bad_words"),
]


@pytest.mark.parametrize(("wrong", "field"), WRONG)
def test_a_wrong_field_is_named(wrong: dict[str, Any], field: str) -> None:
    for body, parse in ((COMPLETION, parse_completion), (CHAT, parse_chat)):
        with pytest.raises(InvalidRequest) as caught:
            parse(body | wrong)
        assert caught.value.field == field
        assert len(str(caught.value)) < 400


def test_options_that_shape_logits() -> None:
    body = {
        "presence_penalty": 0.5, "frequency_penalty": -1, "repetition_penalty": 1.25, "min_tokens": 3, "n": 128,
        "logit_bias": {"7": -100, "3": 0.5}, "bad_words": ["foul", " word"], "prompt_logprobs": 2,
    }  # fmt: skip
    for wanted in (parse_completion(COMPLETION | body), parse_chat(CHAT | body)):
        sampling = wanted.sampling
        assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -1, 1.25)
        assert (sampling.min_tokens, sampling.prompt_logprobs, wanted.n) == (3, 2, 128)
        assert sampling.logit_bias == ((3, 0.5), (7, -100.0))
        assert sampling.bad_texts == ("foul", " word")


def test_logprobs_are_a_number_in_completions_and_a_switch_in_chats() -> None:
    assert parse_completion(COMPLETION).sampling.logprobs is None
    assert parse_completion(COMPLETION | {"logprobs": 0}).sampling.logprobs == 0
    assert parse_chat(CHAT | {"logprobs": False, "top_logprobs": 0}).sampling.logprobs is None
    assert parse_chat(CHAT | {"logprobs": True}).sampling.logprobs == 0
    assert parse_chat(CHAT | {"logprobs": True, "top_logprobs": 4}).sampling.logprobs == 4
    for body, parse, field in (
        (COMPLETION | {"logprobs": True}, parse_completion, "logprobs"),
        (CHAT | {"logprobs": 4}, parse_chat, "logprobs"),
        (CHAT | {"top_logprobs": 4}, parse_chat, "top_logprobs"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            parse(body)
        assert caught.value.field == field


def test_best_of_throws_nothing_away() -> None:
    assert parse_completion(COMPLETION | {"n": 2, "best_of": 2}).n == 2
    for body in ({"best_of": 2}, {"n": 3, "best_of": 1}):
        with pytest.raises(InvalidRequest, match="best_of: expected n"):
            parse_completion(COMPLETION | body)


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (None, "prompt"),
        ([], "prompt"),
        (5, "prompt"),
        ([1, "a"], "prompt"),
        ([[1], [2]], "prompt"),
        (["a", "b"], "prompt"),
    ],
)
def test_a_wrong_prompt_is_named(prompt: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_completion({"prompt": prompt})
    assert caught.value.field == field


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(InvalidRequest, match="prompt: expected a value, got 'nothing'"):
        parse_completion({})


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user"}, "messages.0.content"),
        ({"content": "x"}, "messages.0.role"),
        ({"role": "wizard", "content": "x"}, "messages.0.role"),
        ({"role": "tool", "content": "x"}, "messages.0.role"),
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "user", "content": "x", "name": "n"}, "messages.0.name"),
        ({"role": "user", "content": "x", "bogus": 1}, "messages.0.bogus"),
        ({"role": "user", "content": ["x"]}, "messages.0.content.0"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content.0.type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages.0.content.0.text"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages.0.tool_calls"),
    ],
)
def test_a_wrong_message_is_named(message: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat({"messages": [message]})
    assert caught.value.field == field


def test_a_list_of_one_prompt_is_that_prompt() -> None:
    assert parse_completion({"prompt": ["x"]}).text == "x"
    assert parse_completion({"prompt": [[1, 2]]}).tokens == (1, 2)


def test_max_tokens_by_either_name() -> None:
    assert parse_completion(COMPLETION).sampling.max_tokens == COMPLETION_MAX_TOKENS
    assert parse_chat(CHAT).sampling.max_tokens is None
    assert parse_chat(CHAT | {"max_tokens": 4, "max_completion_tokens": 4}).sampling.max_tokens == 4
    with pytest.raises(InvalidRequest, match="max_completion_tokens alone"):
        parse_chat(CHAT | {"max_tokens": 4, "max_completion_tokens": 5})


def test_verification_mode() -> None:
    assert parse_completion(COMPLETION | {"verification_mode": "rejection"}).sampling.verification_mode is (
        VerificationMode.REJECTION
    )
    assert parse_chat(CHAT | {"relaxed_acceptance": 0.3}).sampling.relaxed_acceptance == 0.3
