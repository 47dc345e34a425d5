"""Several choices of one answer, and log probabilities, as OpenAI's client sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from paceline.router.ingress_fake import MODEL, STOPPED, ScriptedRouter
from paceline.router.requests import Committed, Completed, Event, Request, Started
from paceline.speculation.errors import Overloaded
from paceline.speculation.messages import RoundStats, TokenSource

from tests.unit.test_http_api import TEXT, client_of

CHAT: list[Any] = [{"role": "user", "content": "hi"}]


@dataclass(slots=True)
class Diverse(ScriptedRouter):
    """Choice c writes c + 1 tokens, each its number; the one that fails does so after its first."""

    fails: int = -1

    async def _events(self, request: Request) -> AsyncGenerator[Event, None]:
        choice, sampling = request.choice, request.sampling
        prompt = request.tokens or (1, 2, 3)
        ids = (request.request_id, f"s{choice}", "fake", MODEL.fingerprint, MODEL.numerics_class)
        yield Started(*ids, prompt, sampling.seed or 0, 1)
        stats = RoundStats(rounds=choice + 1)
        for index in range(choice + 1):
            await asyncio.sleep(0.001 * (3 - choice))
            source = (TokenSource.TARGET_ONLY,)
            stats.by_source[source[0]] += 1
            yield Committed(index, (choice,), source, f"{choice} ", "", "fake", "", index, 0, 0, 0, 1)
            if choice == self.fails:
                raise Overloaded("no room for this one", retry_after_s=2)
        if self.fails >= 0:
            await asyncio.Event().wait()
        yield Completed(STOPPED, len(prompt), choice + 1, stats)


async def test_choices_are_in_order_and_their_usage_is_summed() -> None:
    router = Diverse()
    async with client_of(router) as client:
        answer = await client.completions.create(model="", prompt="x", n=3)
    assert [(each.index, each.text, each.finish_reason) for each in answer.choices] == [
        (0, "0 ", "stop"),
        (1, "1 1 ", "stop"),
        (2, "2 2 2 ", "stop"),
    ]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 6, 9)
    records = answer.model_dump()["paceline"]["choices"]
    assert [each["tokens"]["target_only"] for each in records] == [1, 2, 3]
    assert sorted(request.choice for request in router.requests) == [0, 1, 2]
    (seed,) = {request.sampling.seed for request in router.requests}
    assert seed is not None
    assert [each["seed"] for each in records] == [seed] * 3


async def test_a_seed_of_the_callers_is_every_choices() -> None:
    router = Diverse()
    async with client_of(router) as client:
        await client.chat.completions.create(model="", messages=CHAT, n=2, seed=5)
    assert [request.sampling.seed for request in router.requests] == [5, 5]


async def test_chunks_name_their_choice() -> None:
    async with client_of(Diverse()) as client:
        stream = await client.chat.completions.create(
            model="", messages=CHAT, n=3, stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = [chunk async for chunk in stream]
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    for choice in range(3):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice]
        assert mine[0].delta.role == "assistant"
        assert "".join(each.delta.content or "" for each in mine) == f"{choice} " * (choice + 1)
        assert [each.finish_reason for each in mine] == [None] * (len(mine) - 1) + ["stop"]
    assert (last.choices, last.usage and last.usage.completion_tokens) == ([], 6)


async def test_an_error_in_one_choice_ends_all_of_them() -> None:
    router = Diverse(fails=1)
    async with client_of(router) as client:
        with pytest.raises(openai.RateLimitError, match="no room for this one"):
            await client.completions.create(model="", prompt="x", n=3)
        assert router.closed.is_set(), "the choices that were under way are given back"
        router.closed.clear()
        stream = await client.completions.create(model="", prompt="x", n=3, stream=True)
        with pytest.raises(openai.APIError, match="no room for this one"):
            async for _ in stream:
                pass
        assert router.closed.is_set()


async def test_leaving_ends_every_choice() -> None:
    router = ScriptedRouter(hold=True)
    async with client_of(router) as client:
        stream = await client.completions.create(model="", prompt="x", n=2, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await asyncio.wait_for(router.closed.wait(), 5)
    assert len(router.requests) == 2


# Tokens of the script's four rounds; of token t the log probability is -t, the likeliest are 50 and 51.
TOKENS = [0, 0, 1, 2, 0, 1, 2, 3, 0]


async def test_completion_logprobs() -> None:
    async with client_of(ScriptedRouter()) as client:
        answer = await client.completions.create(model="", prompt="x", logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == [f"t{token}" for token in TOKENS]
    assert logprobs.token_logprobs == [-token for token in TOKENS]
    assert logprobs.top_logprobs == [{"t50": 0, "t51": -0.5, f"t{token}": -token} for token in TOKENS]
    assert logprobs.text_offset == [2 * place for place in range(len(TOKENS))]


async def test_chat_logprobs() -> None:
    async with client_of(ScriptedRouter()) as client:
        answer = await client.chat.completions.create(model="", messages=CHAT, logprobs=True, top_logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [(each.token, each.logprob) for each in logprobs.content] == [(f"t{token}", -token) for token in TOKENS]
    assert logprobs.content[3].bytes == list(b"t2")
    assert [(top.token, top.logprob, top.bytes) for top in logprobs.content[3].top_logprobs] == [("t50", 0, [*b"t50"])]


async def test_streamed_logprobs_are_those_of_the_whole() -> None:
    async with client_of(ScriptedRouter()) as client:
        stream = await client.completions.create(model="", prompt="x", logprobs=0, stream=True)
        parts = [chunk.choices[0] async for chunk in stream]
        whole = (await client.completions.create(model="", prompt="x", logprobs=0)).choices[0].logprobs
    assert whole is not None
    told = [part.logprobs for part in parts if part.logprobs is not None]
    assert "".join(part.text for part in parts) == TEXT
    assert len(told) == 4
    assert [token for part in told for token in part.tokens or []] == whole.tokens
    assert [offset for part in told for offset in part.text_offset or []] == whole.text_offset


async def test_without_being_asked_for_there_are_none() -> None:
    async with client_of(ScriptedRouter()) as client:
        answer = await client.chat.completions.create(model="", messages=CHAT)
    assert answer.choices[0].logprobs is None
    assert "prompt_logprobs" not in answer.model_dump()


async def test_prompt_logprobs_in_vllms_form() -> None:
    expected = [
        None,
        {
            "6": {"logprob": -6, "rank": 9, "decoded_token": "t6"},
            "50": {"logprob": 0, "rank": 1, "decoded_token": "t50"},
        },
    ]
    async with client_of(ScriptedRouter()) as client:
        extra = {"prompt_logprobs": 1}
        answer = await client.completions.create(model="", prompt=[5, 6], extra_body=extra, n=2)
        assert [each.model_dump()["prompt_logprobs"] for each in answer.choices] == [expected, expected]
        chat = await client.chat.completions.create(model="", messages=CHAT, extra_body={"prompt_logprobs": 0})
        assert [each and next(iter(each)) for each in chat.model_dump()["prompt_logprobs"]] == [None, "2", "3"]
