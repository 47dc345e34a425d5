"""A worker's server over a real connection: health, reflection, a taken port, errors as statuses, a graceful stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from paceline.runtime.server import CHANNEL_OPTIONS, MAX_MESSAGE_BYTES, WorkerServer, abort, authority, until_stopped
from paceline.runtime.status import RETRY_AFTER_KEY, error_from
from paceline.speculation.errors import InvalidRequest, Overloaded, PacelineError, Unavailable
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2 as draft
from paceline.v1 import draft_pb2_grpc as draft_grpc

NAME = "paceline.v1.DraftService"
Behaviour = Callable[[Any], Awaitable[None]]


class Servicer(draft_grpc.DraftServiceServicer):
    """Describes itself after doing what it is told."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    async def Describe(self, request: Any, context: Any) -> draft.DraftDescription:  # noqa: N802
        await self._behaviour(context)
        return draft.DraftDescription(incarnation="i")


async def at_once(context: Any) -> None:
    """Nothing to wait for."""


def server_with(behaviour: Behaviour = at_once, host: str = "127.0.0.1", port: int = 0, **options: Any) -> WorkerServer:
    def add(server: grpc.aio.Server) -> None:
        draft_grpc.add_DraftServiceServicer_to_server(Servicer(behaviour), server)  # type: ignore[no-untyped-call]

    return WorkerServer(host, port, services=(NAME,), add=add, **options)


@asynccontextmanager
async def serving(behaviour: Behaviour = at_once, **options: Any) -> AsyncIterator[tuple[WorkerServer, Any]]:
    server = server_with(behaviour, **options)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
        yield server, channel
    await server.stop(0)


async def describe(channel: Any, **options: Any) -> draft.DraftDescription:
    stub = draft_grpc.DraftServiceStub(channel)  # type: ignore[no-untyped-call]
    description = await stub.Describe(common.DescribeRequest(), timeout=10, **options)
    assert isinstance(description, draft.DraftDescription)
    return description


async def failing(error: Exception) -> grpc.aio.AioRpcError:
    """The status an error is told with."""

    async def fail(context: Any) -> None:
        await abort(context, error)

    async with serving(fail) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await describe(channel)
        return caught.value


async def test_health_follows_the_server_and_each_service() -> None:
    async with serving() as (server, channel):
        stub = health_pb2_grpc.HealthStub(channel)

        async def status(name: str) -> int:
            return int((await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)).status)

        assert [await status(name) for name in ("", NAME)] == [health_pb2.HealthCheckResponse.SERVING] * 2
        await server.set_serving(False)
        assert [await status(name) for name in ("", NAME)] == [health_pb2.HealthCheckResponse.NOT_SERVING] * 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status("nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services() -> None:
    async with serving() as (_, channel):
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=10)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} == names
        await call.done_writing()


async def test_a_taken_port_is_an_error_that_says_so() -> None:
    async with serving() as (server, _):
        rival = server_with(port=server.port)
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            await rival.start()
        await rival.stop(0)


def test_an_address_has_the_brackets_it_needs() -> None:
    assert authority("127.0.0.1", 80) == "127.0.0.1:80"
    assert authority("::1", 80) == "[::1]:80"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("top_p", expected="a number", got="ö", hint="try 1"), grpc.StatusCode.INVALID_ARGUMENT),
        (Unavailable("no target serves"), grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_an_error_arrives_as_its_status_with_its_text(error: PacelineError, code: grpc.StatusCode) -> None:
    told = await failing(error)
    assert (told.code(), told.details()) == (code, str(error))
    assert str(error_from(told.code(), told.details() or "")) == str(error)


@pytest.mark.parametrize("got", ["x" * 100_000, "\U0001f6b4" * 100_000])
async def test_a_long_text_still_arrives_as_its_status(got: str) -> None:
    told = await failing(InvalidRequest("stop", expected="short strings", got=got))
    assert told.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (told.details() or "").startswith("stop: expected short strings, got ")


async def test_overload_says_when_to_come_back() -> None:
    told = await failing(Overloaded("the queue is full", retry_after_s=0.25))
    assert told.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(told.trailing_metadata() or ())[RETRY_AFTER_KEY] == "250"


async def test_a_bug_is_logged_and_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    told = await failing(ValueError("a prompt, perhaps"))
    assert told.code() is grpc.StatusCode.INTERNAL
    assert "prompt" not in (told.details() or "")
    (record,) = (record for record in caplog.records if record.name == "paceline.runtime.server")
    assert record.levelno == logging.ERROR
    assert record.exc_info


async def test_calls_above_the_limit_are_refused_at_once() -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def wait(context: Any) -> None:
        arrived.set()
        await release.wait()

    async with serving(wait, max_concurrent_rpcs=1) as (_, channel):
        first = asyncio.create_task(describe(channel))
        await arrived.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await describe(channel)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        release.set()
        assert (await first).incarnation == "i"


async def test_a_message_above_the_limit_is_refused() -> None:
    async with serving() as (_, channel):
        call = channel.unary_unary(f"/{NAME}/Describe")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"x" * (MAX_MESSAGE_BYTES + 1), timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_stop_lets_calls_under_way_finish_and_takes_no_more() -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def wait(context: Any) -> None:
        arrived.set()
        await release.wait()

    async with serving(wait) as (server, channel):
        first = asyncio.create_task(describe(channel))
        await arrived.wait()
        stopping = asyncio.create_task(server.stop(10))
        await asyncio.sleep(0.05)
        release.set()
        assert (await first).incarnation == "i"
        await stopping
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await describe(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stop_ends_calls_that_do_not_finish() -> None:
    arrived = asyncio.Event()

    async def wait(context: Any) -> None:
        arrived.set()
        await asyncio.sleep(60)

    async with serving(wait) as (server, channel):
        first = asyncio.create_task(describe(channel))
        await arrived.wait()
        await asyncio.wait_for(server.stop(0.05), 5)
        with pytest.raises(grpc.aio.AioRpcError):
            await first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_runs_the_cleanups_in_order(number: signal.Signals) -> None:
    done: list[str] = []

    async def clean(name: str) -> None:
        done.append(name)

    waiting = asyncio.create_task(until_stopped(lambda: clean("first"), lambda: clean("second")))
    await asyncio.sleep(0)
    assert not done
    os.kill(os.getpid(), number)
    await asyncio.wait_for(waiting, 5)
    assert done == ["first", "second"]
