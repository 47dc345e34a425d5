"""DraftService in process, over a real channel."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from paceline.draft.intake import WINDOW_BYTES
from paceline.draft.service import SERVICE_NAME, DraftService, add_to
from paceline.draft.spans import RunSpan
from paceline.draft.streams import RouterStream, Streams
from paceline.draft.worker import DraftWorker
from paceline.drafters.interface import Ask, Drafter
from paceline.drafters.model import ModelDrafter
from paceline.drafters.ngram import NgramDrafter
from paceline.runtime import wire
from paceline.runtime.server import WorkerServer
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import DraftResult, DraftTask, Fence, Proposal, SessionOpen, Trace
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2 as pb
from paceline.v1.draft_pb2_grpc import DraftServiceStub

from tests.unit.draft_kit import INCARNATION, CountingDrafter, RecordingEngine, opening, task

PROMPT = (1, 2, 3, 1, 2)


class GatedDrafter(CountingDrafter):
    """Waits in its thread until the gate opens."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.gate = threading.Event()

    def propose(self, asks: Sequence[Ask]) -> list[Proposal]:
        assert self.gate.wait(10)
        return super().propose(asks)


class RecordedSpans:
    def __init__(self) -> None:
        self.runs: list[RunSpan] = []

    def draft_run(self, span: RunSpan) -> None:
        self.runs.append(span)


class Cluster:
    """A served worker and a channel to it."""

    def __init__(self, worker: DraftWorker, service: DraftService, channel: grpc.aio.Channel) -> None:
        self.worker, self.service, self.channel = worker, service, channel
        self.stub: Any = DraftServiceStub(channel)  # type: ignore[no-untyped-call]

    async def open(self, what: SessionOpen) -> common.OpenResponse:
        response: common.OpenResponse = await self.stub.Open(wire.to_open(what), timeout=5)
        return response

    def rounds(self) -> Any:
        return self.stub.Rounds(timeout=20)


@contextlib.asynccontextmanager
async def served(*drafters: Drafter, **options: Any) -> AsyncIterator[Cluster]:
    worker = DraftWorker(drafters, drafters[0].name, incarnation=INCARNATION)
    service = DraftService(worker, pb.DraftDescription(incarnation=INCARNATION), **options)
    server = WorkerServer("127.0.0.1", 0, services=(SERVICE_NAME,), add=add_to(service))
    port = await server.start()
    service.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Cluster(worker, service, channel)
    finally:
        await service.stop()
        await server.stop(0)


def batch(*tasks: DraftTask, router: str = "r") -> pb.DraftBatch:
    return pb.DraftBatch(router_id=router, tasks=[wire.to_draft_task(each) for each in tasks])


async def read(stream: Any) -> list[DraftResult]:
    message = await asyncio.wait_for(stream.read(), 10)
    assert message is not grpc.aio.EOF
    return [wire.from_draft_result(result) for result in message.results]


async def eventually(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


def drafted(result: DraftResult) -> tuple[int, ...]:
    assert isinstance(result.outcome, Proposal)
    return result.outcome.tokens


async def test_sixteen_sessions_in_one_message_are_answered_in_one_message() -> None:
    spans = RecordedSpans()
    async with served(ModelDrafter(RecordingEngine()), spans=spans) as cluster:
        names = [f"s{i}" for i in range(16)]
        for name in names:
            opened = await cluster.open(opening(name, PROMPT))
            assert (opened.incarnation, opened.model_id) == (INCARNATION, "small")
        stream = cluster.rounds()
        await stream.write(batch(*(task(PROMPT, session_id=name) for name in names)))
        results = await read(stream)
        assert [result.fence.session_id for result in results] == names
        assert all(len(drafted(result)) == 4 for result in results)
        assert all(result.timing.residence_us >= result.timing.step_us > 0 for result in results)
    (run,) = spans.runs
    assert (run.drafter, run.model_id, len(run.drafts), run.error) == ("model", "small", 16, "")
    assert (run.drafts[0].trace, run.drafts[0].asked, run.drafts[0].drafted) == (Trace(), 4, 4)
    assert run.end_ns > run.start_ns


async def test_a_lookup_does_not_wait_for_a_model() -> None:
    slow = GatedDrafter("slow")
    async with served(NgramDrafter(), slow) as cluster:
        await cluster.open(opening("quick", PROMPT))
        await cluster.open(opening("slow", PROMPT, drafter="slow"))
        stream = cluster.rounds()
        await stream.write(batch(task(PROMPT, session_id="slow"), task(PROMPT, session_id="quick")))
        (first,) = await read(stream)
        assert (first.fence.session_id, drafted(first)) == ("quick", (3, 1, 2, 3))
        await stream.write(batch(task(PROMPT, (3,), session_id="quick", round_id=2)))
        (second,) = await read(stream)
        assert drafted(second) == (1, 2, 3, 1)
        slow.gate.set()
        (third,) = await read(stream)
        assert third.fence.session_id == "slow"


async def test_what_came_too_late_is_answered_empty_and_refusals_at_once() -> None:
    slow = GatedDrafter("slow")
    async with served(slow) as cluster:
        for name in ("a", "b"):
            await cluster.open(opening(name, PROMPT))
        stream = cluster.rounds()
        await stream.write(batch(task(PROMPT, session_id="a")))
        await stream.write(batch(task(PROMPT, session_id="b", deadline_us=1), task(PROMPT, session_id="nobody")))
        (refused,) = await read(stream)
        assert refused.fence.session_id == "nobody"
        slow.gate.set()
        results = {result.fence.session_id: drafted(result) for _ in range(2) for result in await read(stream)}
        assert results == {"a": (5, 6, 7, 8), "b": ()}


async def test_answers_of_one_run_go_to_the_routers_that_asked() -> None:
    slow = GatedDrafter("slow")
    async with served(slow) as cluster:
        streams = {router: cluster.rounds() for router in ("r1", "r2")}
        await cluster.open(opening("first", PROMPT, router_id="r1"))
        await streams["r1"].write(batch(task(PROMPT, session_id="first"), router="r1"))
        for i, (router, stream) in enumerate([*streams.items()] * 2):
            await cluster.open(opening(f"{router}-{i}", PROMPT, router_id=router))
            await stream.write(batch(task(PROMPT, session_id=f"{router}-{i}"), router=router))
        await eventually(lambda: cluster.worker._waiting() == 4)
        slow.gate.set()
        assert [r.fence.session_id for r in await read(streams["r1"])] == ["first"]
        assert [r.fence.session_id for r in await read(streams["r1"])] == ["r1-0", "r1-2"]
        assert [r.fence.session_id for r in await read(streams["r2"])] == ["r2-1", "r2-3"]


async def test_the_end_of_a_routers_last_stream_releases_its_sessions() -> None:
    async with served(NgramDrafter()) as cluster:
        await cluster.open(opening("mine", PROMPT, router_id="r"))
        await cluster.open(opening("other", PROMPT, router_id="q"))
        first, second = cluster.rounds(), cluster.rounds()
        for i, stream in enumerate((first, second)):
            await stream.write(batch(task(PROMPT, session_id="mine", round_id=i + 1)))
            await read(stream)
        first.cancel()
        await asyncio.sleep(0.1)
        assert cluster.worker.sessions == 2
        await second.done_writing()
        assert await second.read() is grpc.aio.EOF
        await eventually(lambda: cluster.worker.sessions == 1)
        released = await cluster.stub.Release(common.ReleaseRequest(session_id="other", lease_epoch=1))
        assert released.released
        assert not (await cluster.stub.Release(common.ReleaseRequest(session_id="other", lease_epoch=1))).released


@pytest.mark.parametrize(
    ("messages", "details"),
    [
        ([pb.DraftBatch(router_id="")], "router_id: expected a router id, got ''"),
        ([pb.DraftBatch(router_id="a"), pb.DraftBatch(router_id="b")], "router_id: expected a, got 'b'"),
        ([pb.DraftBatch(router_id="a", tasks=[pb.DraftTask()])], "fence.session_id: expected a session id, got ''"),
    ],
)
async def test_malformed_rounds_end_the_stream_by_name(messages: list[pb.DraftBatch], details: str) -> None:
    async with served(NgramDrafter()) as cluster:
        stream = cluster.rounds()
        for message in messages:
            await stream.write(message)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == details


async def test_errors_of_open_have_their_status_and_features_nobody_reads_are_refused() -> None:
    async with served(NgramDrafter()) as cluster:
        with pytest.raises(grpc.aio.AioRpcError, match=r"offered here \(ngram\), got 'model'") as caught:
            await cluster.open(opening(drafter="model"))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await cluster.open(opening())
        stream = cluster.stub.Features(timeout=20)
        assert (await stream.read()).bytes == WINDOW_BYTES
        await stream.write(pb.FeatureChunk(session_id="s", lease_epoch=1, incarnation=INCARNATION))
        [want] = (await stream.read()).wants
        assert (want.session_id, want.refused) == ("s", True)
        await stream.write(pb.FeatureChunk())
        with pytest.raises(grpc.aio.AioRpcError, match="session_id") as broken:
            await stream.read()
        assert broken.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        described = await cluster.stub.Describe(common.DescribeRequest())
        assert described.incarnation == INCARNATION


async def test_health_and_reflection() -> None:
    async with served(NgramDrafter()) as cluster:
        health = health_pb2_grpc.HealthStub(cluster.channel)
        for name in ("", SERVICE_NAME):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(cluster.channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = await call.read()
        assert SERVICE_NAME in {service.name for service in listed.list_services_response.service}
        call.cancel()


async def test_a_drafter_may_fail_twice_but_not_three_times_in_a_row() -> None:
    broken = CountingDrafter()
    spans = RecordedSpans()
    async with served(broken, spans=spans) as cluster:
        await cluster.open(opening(tokens=PROMPT))
        stream = cluster.rounds()

        async def play(round_id: int) -> tuple[int, ...]:
            await stream.write(batch(task(PROMPT, round_id=round_id)))
            (result,) = await read(stream)
            return drafted(result)

        broken.failures_left = 2
        assert [await play(round_id) for round_id in (1, 2, 3)] == [(), (), (5, 6, 7, 8)]
        broken.failures_left = 3
        assert [await play(round_id) for round_id in (4, 5)] == [(), ()]
        assert not cluster.service.failed.is_set()
        assert await play(6) == ()
        await asyncio.wait_for(cluster.service.failed.wait(), 5)
    assert [bool(run.error) for run in spans.runs] == [True, True, False, True, True, True]


async def test_a_run_that_never_ends_is_a_failure() -> None:
    stuck = GatedDrafter("stuck")
    async with served(stuck, run_limit_s=0.1) as cluster:
        await cluster.open(opening(tokens=PROMPT))
        stream = cluster.rounds()
        await stream.write(batch(task(PROMPT)))
        (result,) = await read(stream)
        assert drafted(result) == ()
        await asyncio.wait_for(cluster.service.failed.wait(), 5)
        stuck.gate.set()


async def test_stopping_ends_the_streams() -> None:
    async with served(NgramDrafter()) as cluster:
        stream = cluster.rounds()
        await stream.write(pb.DraftBatch(router_id="r"))
        await cluster.open(opening(tokens=PROMPT))
        await eventually(lambda: cluster.service._streams._open)
        await cluster.service.stop()
        assert await asyncio.wait_for(stream.read(), 5) is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_router_that_does_not_read_loses_answers_and_memory_stays_bounded() -> None:
    stream = RouterStream(max_unsent=2)
    stream.name("r")
    with pytest.raises(InvalidRequest):
        stream.name("q")
    result = DraftResult(Fence("s", "i", 1, 1, 1, bytes(8)), Proposal((1,)))
    message = pb.DraftBatchResult(results=[wire.to_draft_result(result)])
    for _ in range(5):
        stream.send(message)
    stream.close()
    stream.close()
    stream.send(message)
    assert len([message async for message in stream]) == 2
    Streams().deliver([("gone", result)])
