"""DraftService in process, over a real channel."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from paceline.draft.service import SERVICE_NAME
from paceline.drafters.model import ModelDrafter
from paceline.drafters.ngram import NgramDrafter
from paceline.speculation.messages import Trace
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2 as pb

from tests.unit.draft_kit import INCARNATION, RecordingEngine, opening, task
from tests.unit.draft_service_kit import PROMPT, GatedDrafter, RecordedSpans, batch, drafted, eventually, read, served


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


async def test_stopping_ends_the_streams() -> None:
    async with served(NgramDrafter()) as cluster:
        stream = cluster.rounds()
        await stream.write(pb.DraftBatch(router_id="r"))
        await cluster.open(opening(tokens=PROMPT))
        await eventually(lambda: cluster.service._streams._open)
        await cluster.service.stop()
        assert await asyncio.wait_for(stream.read(), 5) is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
