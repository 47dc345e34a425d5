"""OpenAI's own client against a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.hosting import Hosted, until

pytestmark = pytest.mark.e2e

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Why ride in a line?"}]
SAMPLED: dict[str, Any] = {"temperature": 0.8, "seed": 31, "max_tokens": 40}
IGNORE_EOS = {"ignore_eos": True}
FREED_S = 5.0


@pytest.fixture
async def client(fake_cluster: Hosted) -> AsyncIterator[AsyncOpenAI]:
    async with openai_client(fake_cluster) as one:
        yield one


def openai_client(hosted: Hosted) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{hosted.http}/v1", api_key="any", max_retries=0, timeout=60)


async def model_of(client: AsyncOpenAI) -> str:
    """The only model on offer."""
    models = await client.models.list()
    (model,) = models.data
    assert (await client.models.retrieve(model.id)).id == model.id
    return model.id


async def completions_are_equal(client: AsyncOpenAI) -> None:
    model = await model_of(client)
    whole = await client.completions.create(model=model, prompt="In a line", extra_body=IGNORE_EOS, **SAMPLED)
    stream = await client.completions.create(
        model=model,
        prompt="In a line",
        stream=True,
        stream_options={"include_usage": True},
        extra_body=IGNORE_EOS,
        **SAMPLED,
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].text != ""
    finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finishes[-1] == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == SAMPLED["max_tokens"]
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}


async def chats_are_equal(client: AsyncOpenAI) -> None:
    model = await model_of(client)
    whole = await client.chat.completions.create(model=model, messages=MESSAGES, extra_body=IGNORE_EOS, **SAMPLED)
    stream = await client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=IGNORE_EOS,
        **SAMPLED,
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != ""
    assert chunks[0].choices[0].delta.role == whole.choices[0].message.role == "assistant"
    assert chunks[-1].usage == whole.usage


async def test_streamed_and_whole_answers_are_equal(client: AsyncOpenAI) -> None:
    await completions_are_equal(client)
    await chats_are_equal(client)


@pytest.mark.model
async def test_streamed_and_whole_answers_of_the_demo_model_are_equal(demo_cluster: Hosted) -> None:
    async with openai_client(demo_cluster) as client:
        await completions_are_equal(client)
        await chats_are_equal(client)


async def test_usage_and_metrics_agree(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="",
        prompt="In a line",
        extra_body=IGNORE_EOS | {"speculation": {"mode": "fixed", "max_draft_tokens": 4}},
        **SAMPLED,
    )
    extra = answer.model_extra
    assert extra is not None
    ours, theirs, usage = extra["paceline"], extra["metrics"]["speculative_decoding"], answer.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert sum(ours["tokens"].values()) == usage.completion_tokens == SAMPLED["max_tokens"]
    assert ours["seed"] == SAMPLED["seed"]
    assert ours["drafted"] >= ours["verified"] >= ours["accepted"] == ours["tokens"]["accepted"]
    drafted, accepted = theirs["per_step_drafted"], theirs["per_step_accepted"]
    assert theirs["num_spec_steps"] == ours["verify_rounds"] == len(drafted) == len(accepted) > 0
    assert theirs["num_draft_tokens"] == ours["verified"] == sum(drafted)
    assert theirs["num_accepted_draft_tokens"] == ours["accepted"] == sum(accepted)
    assert theirs["num_spec_tokens"] == max(drafted) <= 4
    assert theirs["acceptance_histogram"] == [accepted.count(n) for n in range(max(drafted) + 1)]
    assert theirs["draft_acceptance_rate"] == pytest.approx(ours["acceptance_over_verified"])
    assert theirs["mean_acceptance_length"] == pytest.approx(1 + sum(accepted) / len(accepted))
    assert ours["rounds"] >= ours["verify_rounds"]
    assert ours["tokens"]["corrected"] + ours["tokens"]["bonus"] <= ours["verify_rounds"]


async def test_leaving_an_answer_frees_its_session(client: AsyncOpenAI, fake_cluster: Hosted) -> None:
    stream = await client.completions.create(
        model="", prompt="In a line", max_tokens=4000, stream=True, extra_body=IGNORE_EOS
    )
    async for chunk in stream:
        assert chunk.choices[0].finish_reason is None
        break

    async def held() -> bool:
        stats = (await fake_cluster.status())["stats"]
        sessions = [worker["sessions"] for worker in stats["workers"]]
        return [stats["under_way"], *sessions] == [1, 1, 1]

    await until(held, FREED_S, "the answer to be under way", fake_cluster.tails)
    await stream.close()
    await fake_cluster.until_idle(FREED_S)


async def test_errors_name_what_is_wrong(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody/nothing") as unknown:
        await client.completions.create(model="nobody/nothing", prompt="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature") as hot:
        await client.chat.completions.create(model="", messages=MESSAGES, temperature=-1)
    assert (hot.value.param, hot.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.BadRequestError, match="verbosity") as unsupported:
        await client.chat.completions.create(model="", messages=MESSAGES, verbosity="high")
    assert (unsupported.value.param, unsupported.value.code) == ("verbosity", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody/nothing")
    await completions_are_equal(client)
