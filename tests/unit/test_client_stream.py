"""Answers, errors and cancellation, over real sockets, for both clients."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from paceline.v1 import common_pb2, generation_pb2
from paceline_client import (
    AuthenticationError,
    Client,
    DeadlineExceededError,
    FinishReason,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PacelineError,
    RetryPolicy,
    ServerError,
    Speculation,
    StreamClosedError,
    TokenSource,
    UnavailableError,
)

from tests.unit.test_client_scripted import (
    ANSWER,
    PROMPT,
    TEXT,
    Act,
    AnyClient,
    FakeRouter,
    Server,
)

Code = grpc.StatusCode
ACCEPTED = common_pb2.TOKEN_SOURCE_ACCEPTED


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_an_answer_comes_whole(kind: str) -> None:
    async with Server(FakeRouter()) as server, AnyClient(kind, server.address) as client:
        answer = await client.generate()
    assert answer.text == TEXT
    assert answer.token_ids == tuple(ANSWER)
    assert [token.index for token in answer.tokens] == list(range(len(ANSWER)))
    assert answer.started.prompt_token_ids == tuple(PROMPT)
    assert answer.finish.reason is FinishReason.STOP
    assert answer.finish.stop_token_id == 2
    assert answer.finish.stop_string is None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 12)
    assert (answer.resumes, answer.stall_s, answer.class_changed) == (0, 0.0, False)
    assert answer.speculation.acceptance_rate == pytest.approx(6 / 8)
    assert answer.speculation.accepted_length == pytest.approx(10 / 4)
    assert answer.speculation.committed_per_round == pytest.approx(12 / 6)


async def test_chunks_carry_the_provenance_of_each_token(kind: str) -> None:
    async with Server(FakeRouter()) as server, AnyClient(kind, server.address) as client, client.stream() as stream:
        first = await anext(stream)
        assert stream.inner.started is not None
        assert stream.inner.started.seed == 7
        assert stream.inner.finish is None
        second = await anext(stream)
        answer = await stream.result()
    assert first.text == "t0 t1 t2 "
    assert (first.index, first.drafted, first.verified, first.accepted) == (0, 3, 2, 2)
    assert [token.source for token in first.tokens] == [TokenSource.ACCEPTED] * 2 + [TokenSource.CORRECTED]
    assert [token.proposer_model_id for token in first.tokens] == ["draft-model", "draft-model", None]
    assert {token.verifier_model_id for token in first.tokens} == {"target-model"}
    (alone,) = second.tokens
    assert (alone.source, alone.proposer_model_id, alone.drafter) == (TokenSource.TARGET_ONLY, None, "")
    assert (alone.index, alone.round_id) == (3, 2)
    assert answer.text == TEXT  # what was read before included
    assert stream.inner.usage == answer.usage
    assert stream.inner.speculation == answer.speculation
    assert await stream.result() == answer  # complete: closing it took nothing away


async def test_a_request_says_what_was_asked_and_no_more(kind: str) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    async with Server(FakeRouter()) as server, AnyClient(kind, server.address, api_key="k-1", timeout=9) as client:
        await client.generate()
        await client.generate(
            None,
            messages=[{"role": "user", "content": "hi"}],
            model="demo",
            temperature=0,
            top_k=0,
            min_p=0.0,
            seed=2**64 - 1,
            max_tokens=5,
            stop=["\n"],
            stop_token_ids=[2],
            ignore_eos=False,
            speculation=Speculation("fixed", max_draft_tokens=0, drafter="ngram"),
            request_id="mine",
            traceparent=trace,
            timeout=5,
        )
        await client.generate([1, 2])
    plain, full, ids = server.router.requests
    assert plain == generation_pb2.GenerateRequest(text="hello", sampling=common_pb2.SamplingOptions())
    assert full.chat.messages[0] == generation_pb2.ChatMessage(role="user", content="hi")
    wanted = common_pb2.SamplingOptions(
        temperature=0, top_k=0, min_p=0, seed=2**64 - 1, max_tokens=5, stop=["\n"], stop_token_ids=[2], ignore_eos=False
    )
    assert full.sampling == wanted
    assert not full.sampling.HasField("top_p")
    assert full.speculation.mode == generation_pb2.SPECULATION_MODE_FIXED
    assert full.speculation.HasField("max_draft_tokens")
    assert full.request_id == "mine"
    assert list(ids.tokens.ids) == [1, 2]
    assert server.router.metadata[0]["authorization"] == "Bearer k-1"
    assert "traceparent" not in server.router.metadata[0]
    assert server.router.metadata[1]["traceparent"] == trace
    assert server.router.time_left[0] == pytest.approx(9, abs=0.9)
    assert server.router.time_left[1] == pytest.approx(5, abs=0.9)


async def test_leaving_early_cancels_on_the_server(kind: str) -> None:
    async with Server(FakeRouter(Act(tokens=3, hang=True))) as server, AnyClient(kind, server.address) as client:
        async with client.stream() as stream:
            assert (await anext(stream)).index == 0
        await asyncio.wait_for(server.router.cancelled.wait(), 5)
        with pytest.raises(StreamClosedError, match="after 3 tokens") as caught:
            await anext(stream)
    assert caught.value.received is not None
    assert caught.value.received.token_ids == tuple(ANSWER[:3])
    assert len(server.router.requests) == 1  # our own cancel is no reason to resume


@pytest.mark.parametrize("closed", ["stream", "client"])
async def test_closing_from_elsewhere_ends_a_read(kind: str, closed: str) -> None:
    async with Server(FakeRouter(Act(tokens=0, hang=True))) as server, AnyClient(kind, server.address) as client:
        stream = client.stream()
        reading = asyncio.create_task(stream.__anext__())
        await asyncio.wait_for(server.router.hanging.wait(), 5)
        if closed == "stream":
            stream.inner.close()
        else:
            await client.close()
        with pytest.raises(StreamClosedError):
            await asyncio.wait_for(reading, 5)
        await asyncio.wait_for(server.router.cancelled.wait(), 5)
    with pytest.raises(StreamClosedError):
        await client.stream().result() if closed == "client" else await stream.result()


async def test_cancelling_the_task_cancels_on_the_server() -> None:
    async with Server(FakeRouter(Act(tokens=0, hang=True))) as server, AnyClient("async", server.address) as client:
        reading = asyncio.create_task(client.generate())
        await asyncio.wait_for(server.router.hanging.wait(), 5)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.wait_for(server.router.cancelled.wait(), 5)


async def test_the_timeout_ends_an_answer_and_keeps_what_came(kind: str) -> None:
    async with Server(FakeRouter(Act(tokens=4, hang=True))) as server, AnyClient(kind, server.address) as client:
        with pytest.raises(DeadlineExceededError, match=r"after 4 tokens \(timeout 0.5 s\)") as caught:
            await client.generate(timeout=0.5)
    assert caught.value.received is not None
    assert caught.value.received.text == "t0 t1 t2 t3 "
    assert len(server.router.requests) == 1


async def test_a_client_is_shared_by_threads() -> None:
    async with Server(FakeRouter(*[Act(tokens=n % 5) for n in range(16)])) as server:
        with Client(server.address, retry=RetryPolicy(first_delay_s=0.01)) as client:
            answers = await asyncio.gather(*(asyncio.to_thread(client.generate, "x") for _ in range(16)))
    assert {answer.text for answer in answers} == {TEXT}


async def test_closing_ends_the_wait_between_attempts() -> None:
    policy = RetryPolicy(first_delay_s=60, max_delay_s=60, budget_s=600)
    async with Server(FakeRouter(Act(tokens=0))) as server:
        with Client(server.address, retry=policy) as client, client.stream("x") as stream:
            reading = asyncio.create_task(asyncio.to_thread(stream.result))
            for _ in range(500):
                if stream.stall_s > 0:
                    break
                await asyncio.sleep(0.01)
            stream.close()
            with pytest.raises(StreamClosedError):
                await asyncio.wait_for(reading, 5)


MAPPING: list[tuple[Code, str, type[PacelineError]]] = [
    (Code.INVALID_ARGUMENT, "temperature: expected a number, got x", InvalidRequestError),
    (Code.UNIMPLEMENTED, "Method not found!", InvalidRequestError),
    (Code.UNAUTHENTICATED, "api key: expected one", AuthenticationError),
    (Code.PERMISSION_DENIED, "no", AuthenticationError),
    (Code.NOT_FOUND, "model: expected demo", NotFoundError),
    (Code.RESOURCE_EXHAUSTED, "full", OverloadedError),
    (Code.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 4)", InvalidRequestError),
    (Code.DEADLINE_EXCEEDED, "too slow", DeadlineExceededError),
    (Code.INTERNAL, "internal error; the service's log has the details", ServerError),
    (Code.UNKNOWN, "Unexpected <class 'KeyError'>: 3", ServerError),
    (Code.FAILED_PRECONDITION, "a newer lease exists", ServerError),
    (Code.DATA_LOSS, "", ServerError),
]


@pytest.mark.parametrize(("code", "details", "error"), MAPPING)
async def test_each_status_becomes_its_error_at_once(
    kind: str, code: Code, details: str, error: type[PacelineError]
) -> None:
    router = FakeRouter(Act(start=False, code=code, details=details))
    async with Server(router) as server, AnyClient(kind, server.address) as client:
        with pytest.raises(PacelineError) as caught:
            await client.generate()
    assert type(caught.value) is error
    assert details in str(caught.value)
    assert client.waits == []
    assert len(router.requests) == 1


FULL = Act(start=False, code=Code.RESOURCE_EXHAUSTED, details="queue full; retry after 1.5 s")


@pytest.mark.parametrize(
    ("act", "seconds"),
    [
        (FULL, 1.5),
        (replace(FULL, trailing=(("paceline-retry-after-ms", "2500"),)), 2.5),
        (replace(FULL, trailing=(("paceline-retry-after-ms", "soon"),)), 1.5),
        (replace(FULL, details="queue full"), None),
    ],
)
async def test_overload_says_when_to_come_back(kind: str, act: Act, seconds: float | None) -> None:
    async with Server(FakeRouter(act)) as server, AnyClient(kind, server.address) as client:
        with pytest.raises(OverloadedError) as caught:
            await client.generate()
    assert caught.value.retry_after_s == seconds


async def test_overload_is_waited_out_if_asked(kind: str) -> None:
    async with (
        Server(FakeRouter(FULL)) as server,
        AnyClient(kind, server.address, retry=RetryPolicy(retry_overloaded=True), random=lambda: 0.0) as client,
    ):
        assert (await client.generate()).text == TEXT
    assert client.waits == [pytest.approx(1.6)]  # what the server said, and the backoff on top


async def test_models_are_listed_with_retries(kind: str) -> None:
    async with (
        Server(FakeRouter()) as server,
        AnyClient(kind, server.address, api_key="k", retry=RetryPolicy(attempts=1)) as client,
    ):
        server.router.model_failures = [Code.UNAVAILABLE]
        (model,) = await client.models()
        assert (model.id, model.drafters, model.targets, model.drafts) == ("demo", ("ngram",), 1, 0)
        assert server.router.metadata[-1]["authorization"] == "Bearer k"
        server.router.model_failures = [Code.UNAVAILABLE, Code.UNAVAILABLE]
        with pytest.raises(UnavailableError, match="scripted"):
            await client.models()
        server.router.model_failures = [Code.UNAUTHENTICATED]
        with pytest.raises(AuthenticationError):
            await client.models()
    with pytest.raises(StreamClosedError):
        await client.models()


async def test_wrong_arguments_never_leave(kind: str) -> None:
    wrong: list[dict[str, Any]] = [{"temperature": -1}, {"timeout": 0}, {"traceparent": "x"}, {"stop": "word"}]
    async with Server(FakeRouter()) as server, AnyClient(kind, server.address) as client:
        for options in wrong:
            with pytest.raises(InvalidRequestError, match=next(iter(options))):
                await client.generate(**options)
        with pytest.raises(TypeError, match="temprature"):
            await client.generate(temprature=1)
    assert server.router.requests == []
