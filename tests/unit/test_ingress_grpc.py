"""The gRPC ingress over a real channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from paceline.router.auth import OPEN, Keys
from paceline.router.ingress import SERVICE_NAME, GenerationService, grpc_ingress
from paceline.router.ingress_fake import MODEL, Round, ScriptedRouter
from paceline.router.requests import Resume
from paceline.runtime.status import RETRY_AFTER_KEY
from paceline.speculation import errors
from paceline.speculation.params import SpeculationMode, VerificationMode
from paceline.v1 import common_pb2 as common
from paceline.v1 import generation_pb2 as generation
from paceline.v1 import generation_pb2_grpc as generation_grpc

SECRET_DIGEST = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"


@dataclass
class Wire:
    """A channel to the ingress, and the stub on it."""

    channel: grpc.aio.Channel
    stub: Any


@asynccontextmanager
async def served(router: ScriptedRouter, keys: Keys = OPEN) -> AsyncIterator[Wire]:
    server = grpc_ingress(router, keys, "127.0.0.1", 0, max_calls=64, shared=False)
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Wire(channel, generation_grpc.GenerationServiceStub(channel))  # type: ignore[no-untyped-call]
    finally:
        await server.stop(0)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value


async def refused(message: generation.GenerateRequest) -> str:
    """Details of the INVALID_ARGUMENT that a message gets."""
    async with served(ScriptedRouter()) as wire:
        error = await failure(wire.stub.Generate(message))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(error.details())


async def test_an_answer() -> None:
    router = ScriptedRouter()
    sampling = common.SamplingOptions(temperature=0, seed=2**64 - 1, stop=["x"], verification_mode=1)  # type: ignore[arg-type]
    speculation = generation.SpeculationOptions(mode=generation.SPECULATION_MODE_FIXED, max_draft_tokens=0)
    message = generation.GenerateRequest(
        model="fake", text="Tell", sampling=sampling, speculation=speculation, request_id="mine"
    )
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    async with served(router) as wire:
        call = wire.stub.Generate(message, timeout=5, metadata=(("traceparent", parent), ("tracestate", "v=1")))
        events = [response async for response in call]
    assert [event.WhichOneof("event") for event in events] == ["started", *["tokens"] * 4, "completed"]
    started, completed = events[0].started, events[-1].completed
    assert (started.request_id, started.seed, list(started.prompt_token_ids)) == ("mine", 2**64 - 1, [1, 2, 3])
    assert "".join(event.tokens.text for event in events[1:-1]) == "Once upon a time."
    assert [event.tokens.index for event in events[1:-1]] == [0, 1, 4, 8]
    second = events[2].tokens
    assert (second.drafted, second.verified, second.accepted, second.drafter) == (4, 3, 2, "ngram")
    assert list(second.sources) == [1, 1, 2]
    metrics = completed.speculation
    assert (metrics.drafted_tokens, metrics.verified_tokens, metrics.accepted_tokens) == (9, 8, 5)
    assert (metrics.corrected_tokens, metrics.bonus_tokens, metrics.target_only_tokens) == (2, 1, 1)
    assert (metrics.draft_wait_us, metrics.verify_wait_us, metrics.router_us, metrics.network_us) == (10, 20, 30, 40)
    assert (completed.usage.completion_tokens, completed.finish.stop_token_id) == (9, 2)
    [request] = router.requests
    assert (request.text, request.tokens, request.messages, request.tenant) == ("Tell", None, None, "default")
    assert request.timeout_s is not None
    assert 4 < request.timeout_s < 5.1  # gRPC rounds deadlines up
    assert (request.trace.traceparent, request.trace.tracestate) == (parent, "v=1")
    sampled = request.sampling
    assert (sampled.temperature, sampled.top_k, sampled.seed, sampled.stop) == (0, None, 2**64 - 1, ("x",))
    assert sampled.verification_mode is VerificationMode.AGREEMENT
    assert (request.speculation.mode, request.speculation.max_draft_tokens) == (SpeculationMode.FIXED, 0)


async def test_chats_tokens_and_resumes() -> None:
    router = ScriptedRouter()
    chat = generation.Chat(messages=[generation.ChatMessage(role="user", content="hi")])
    resume = generation.Resume(
        prompt_token_ids=[1, 2], seed=9, numerics_class="c", lease_epoch=3, session_id="s", committed_token_ids=[4]
    )
    async with served(router) as wire:
        for message in (
            generation.GenerateRequest(chat=chat),
            generation.GenerateRequest(tokens=generation.TokenIds(ids=[7, 8])),
            generation.GenerateRequest(resume=resume),
        ):
            assert [_ async for _ in wire.stub.Generate(message)]
    first, second, third = router.requests
    assert first.messages == (("user", "hi"),)
    assert first.timeout_s is None
    assert second.tokens == (7, 8)
    assert third.resume == Resume((1, 2), (4,), 9, "c", 3, "s")
    assert third.tokens is None, "the resume brings them"


async def test_a_field_of_a_later_version_is_refused_by_number() -> None:
    newer = generation.GenerateRequest(text="x")
    newer.MergeFromString(bytes([(100 << 3) & 0x7F | 0x80, 100 >> 4, 1]))
    assert "GenerateRequest: expected only fields of this version, got 'field number 100'" in await refused(newer)
    nested = generation.GenerateRequest(text="x")
    nested.sampling.MergeFromString(bytes([(99 << 3) & 0x7F | 0x80, 99 >> 4, 1]))
    assert (await refused(nested)).startswith("sampling: expected only fields of this version, got 'field number 99'")
    deep = generation.GenerateRequest(chat=generation.Chat(messages=[generation.ChatMessage(role="user")]))
    deep.chat.messages[0].MergeFromString(bytes([(98 << 3) & 0x7F | 0x80, 98 >> 4, 1]))
    assert (await refused(deep)).startswith("chat.messages: expected only fields of this version")


@pytest.mark.parametrize(
    ("message", "start"),
    [
        (generation.GenerateRequest(), "input: expected one of text, chat and tokens"),
        (generation.GenerateRequest(tokens=generation.TokenIds()), "tokens.ids: expected at least one"),
        (generation.GenerateRequest(chat=generation.Chat()), "chat.messages: expected at least one"),
        (
            generation.GenerateRequest(chat=generation.Chat(messages=[generation.ChatMessage(content="x")])),
            "chat.messages.0.role",
        ),
        (generation.GenerateRequest(text="x", resume=generation.Resume()), "resume.prompt_token_ids"),
        (generation.GenerateRequest(resume=generation.Resume(prompt_token_ids=[1])), "resume.session_id"),
        (
            generation.GenerateRequest(text="x", resume=generation.Resume(prompt_token_ids=[1], session_id="s")),
            "resume: expected no text beside it",
        ),
        (generation.GenerateRequest(text="x", request_id="a b"), "request_id"),
        (
            generation.GenerateRequest(text="x", speculation=generation.SpeculationOptions(mode=9)),  # type: ignore[arg-type]
            "speculation.mode: expected a known mode, got 9",
        ),
        (
            generation.GenerateRequest(text="x", sampling=common.SamplingOptions(verification_mode=9)),  # type: ignore[arg-type]
            "sampling.verification_mode: expected a known mode, got 9",
        ),
        (
            generation.GenerateRequest(text="x", speculation=generation.SpeculationOptions(max_draft_tokens=65)),
            "speculation.max_draft_tokens",
        ),
    ],
)
async def test_a_wrong_field_is_named(message: generation.GenerateRequest, start: str) -> None:
    assert (await refused(message)).startswith(start)


ERRORS = [
    (errors.InvalidRequest("top_k", expected="a number", got=-1), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound("no model"), grpc.StatusCode.NOT_FOUND),
    (errors.StaleLease("newer"), grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Overloaded("full", retry_after_s=1.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.DeadlineExceeded("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.Unavailable("no target"), grpc.StatusCode.UNAVAILABLE),
    (KeyError("secret"), grpc.StatusCode.INTERNAL),
]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("error", "code"), ERRORS)
async def test_each_error_has_its_status_before_and_after_tokens(
    error: Exception, code: grpc.StatusCode, late: bool
) -> None:
    router = ScriptedRouter(fail=error) if late else ScriptedRouter(refuse=error)
    async with served(router) as wire:
        told = await failure(wire.stub.Generate(generation.GenerateRequest(text="x")))
    assert told.code() is code
    assert "secret" not in str(told.details())
    trailing = {str(key): value for key, value in told.trailing_metadata()}
    assert trailing.get(RETRY_AFTER_KEY) == ("1500" if code is grpc.StatusCode.RESOURCE_EXHAUSTED else None)


async def test_a_cancelled_call_closes_the_routers_generator() -> None:
    router = ScriptedRouter(hold=True)
    async with served(router) as wire:
        call = wire.stub.Generate(generation.GenerateRequest(text="x"))
        await call.read()
        assert not router.closed.is_set()
        call.cancel()
        await asyncio.wait_for(router.closed.wait(), 2)


async def test_a_deadline_closes_the_routers_generator() -> None:
    router = ScriptedRouter(hold=True)
    async with served(router) as wire:
        told = await failure(wire.stub.Generate(generation.GenerateRequest(text="x"), timeout=0.3))
        await asyncio.wait_for(router.closed.wait(), 2)
    assert told.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_client_that_stops_reading_is_let_go() -> None:
    router = ScriptedRouter(rounds=[Round("x" * 50_000)] * 400)  # the transport holds some 5 MB of it
    service = GenerationService(router, OPEN, slow_reader_s=0.2)
    server = grpc.aio.server()
    generation_grpc.add_GenerationServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = generation_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Generate(generation.GenerateRequest(text="x"))
            await call.read()
            await asyncio.wait_for(router.closed.wait(), 5)
            call.cancel()
    finally:
        await server.stop(0)


async def test_keys_are_asked_for() -> None:
    router, message = ScriptedRouter(), generation.GenerateRequest(text="x")
    async with served(router, Keys({SECRET_DIGEST: "acme"})) as wire:
        for metadata in ((), (("authorization", "Basic secret"),), (("authorization", "Bearer other"),)):
            told = await failure(wire.stub.Generate(message, metadata=metadata))
            assert told.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
            await wire.stub.ListModels(generation.ListModelsRequest())
        bearer = (("authorization", "Bearer secret"),)
        assert [_ async for _ in wire.stub.Generate(message, metadata=bearer)]
        assert (await wire.stub.ListModels(generation.ListModelsRequest(), metadata=bearer)).models
    assert router.requests[-1].tenant == "acme"


async def test_models_and_health() -> None:
    async with served(ScriptedRouter()) as wire:
        [model] = (await wire.stub.ListModels(generation.ListModelsRequest())).models
        health = health_pb2_grpc.HealthStub(wire.channel)
        status = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
    assert (model.id, model.fingerprint, model.context_length) == ("fake", MODEL.fingerprint, 4096)
    assert (list(model.drafters), model.targets, model.drafts) == (["ngram"], 1, 1)
    assert status.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_malformed_trace_counts_as_none() -> None:
    router = ScriptedRouter()
    async with served(router) as wire:
        for parent in ("nonsense", f"00-{'0' * 32}-{'b' * 16}-01", f"ff-{'a' * 32}-{'b' * 16}-01"):
            call = wire.stub.Generate(generation.GenerateRequest(text="x"), metadata=(("traceparent", parent),))
            assert [_ async for _ in call]
    assert {request.trace.traceparent for request in router.requests} == {""}
