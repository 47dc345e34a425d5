"""TargetService in process, over a real channel."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from paceline.engine.interface import StepPlan, StepResult
from paceline.runtime import wire
from paceline.runtime.server import WorkerServer
from paceline.speculation.errors import InvalidRequest, Overloaded
from paceline.speculation.messages import (
    Resync,
    ResyncReason,
    SessionOpen,
    StepReport,
    TokenSource,
    Verdict,
    VerifyResult,
    VerifyTask,
)
from paceline.target.service import FILE_CHUNK_BYTES, SERVICE_NAME, TargetService, add_to
from paceline.target.spans import StepSpan
from paceline.target.streams import RouterStream, Streams
from paceline.target.verifier import Verifier
from paceline.v1 import common_pb2 as common
from paceline.v1 import target_pb2 as pb
from paceline.v1.target_pb2_grpc import TargetServiceStub

from tests.unit.target_kit import STEP_S, ScriptedEngine, make_verifier, opening, plain, task

FILES = {"tokenizer.json": b"{}" * FILE_CHUNK_BYTES, "empty.txt": b""}


@dataclass
class GatedEngine(ScriptedEngine):
    """Waits in its thread until the gate opens."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: int = 0

    def step(self, plan: StepPlan) -> StepResult:
        self.entered += 1
        assert self.gate.wait(10)
        return super().step(plan)


class RecordedSpans:
    def __init__(self) -> None:
        self.steps: list[StepSpan] = []

    def verify_step(self, span: StepSpan) -> None:
        self.steps.append(span)


@dataclass
class Served:
    """A served verifier and a channel to it."""

    verifier: Verifier
    engine: ScriptedEngine
    service: TargetService
    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.stub: Any = TargetServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def open(self, *sources: SessionOpen) -> None:
        for source in sources:
            opened = await self.stub.Open(wire.to_open(source), timeout=5)
            assert (opened.incarnation, opened.model_id) == ("inc-1", "scripted")

    def rounds(self) -> Any:
        return self.stub.Rounds(timeout=20)


@contextlib.asynccontextmanager
async def served(engine: ScriptedEngine | None = None, *, limits: Any = None, **options: Any) -> AsyncIterator[Served]:
    verifier, engine = make_verifier(engine, **(limits or {}))
    service = TargetService(verifier, engine, pb.TargetDescription(incarnation="inc-1"), FILES, **options)
    server = WorkerServer("127.0.0.1", 0, services=(SERVICE_NAME,), add=add_to(service))
    port = await server.start()
    service.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Served(verifier, engine, service, channel)
    finally:
        await service.stop()
        await server.stop(0)


def batch(*tasks: VerifyTask, router: str = "r1") -> pb.VerifyBatch:
    return pb.VerifyBatch(router_id=router, tasks=[wire.to_verify_task(each) for each in tasks])


async def read(stream: Any) -> tuple[list[VerifyResult], StepReport]:
    message = await asyncio.wait_for(stream.read(), 10)
    assert message is not grpc.aio.EOF
    return [wire.from_verify_result(result) for result in message.results], wire.from_step(message.step)


async def eventually(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


def tokens_of(result: VerifyResult) -> tuple[int, ...]:
    assert isinstance(result.outcome, Verdict), result
    return result.outcome.tokens


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 10)
    code: grpc.StatusCode = caught.value.code()
    return code


async def test_sixteen_sessions_in_one_message_share_a_step_and_an_answer() -> None:
    spans = RecordedSpans()
    sources = [opening(f"s{i}", tokens=(i % 5, 1)) for i in range(16)]
    async with served(spans=spans) as target:
        await target.open(*sources)
        stream = target.rounds()
        await stream.write(batch(*(task(each, drafts=plain(each)[0][:2]) for each in sources)))
        results, step = await read(stream)
        assert [result.fence.session_id for result in results] == [each.session_id for each in sources]
        assert [tokens_of(result) for result in results] == [plain(each)[0][:3] for each in sources]
        assert step == StepReport(1, 16, 64, round(STEP_S * 1e6))
        assert len(target.engine.plans) == 1
    (span,) = spans.steps
    assert (span.step, span.model_id, span.error, len(span.rounds)) == (step, "scripted", "", 16)
    assert span.start_ns <= span.end_ns
    assert span.rounds[3].tokens == plain(sources[3])[0][:3]


async def test_an_answer_is_decoded_round_by_round() -> None:
    source = opening(max_tokens=9, stop=("d c",))
    tokens, text = plain(source)
    async with served() as target:
        await target.open(source)
        stream, shown = target.rounds(), ""
        committed: tuple[int, ...] = ()
        last: Verdict | None = None
        for round_id in range(1, 20):
            await stream.write(batch(task(source, committed, tokens[len(committed) :][:2], round_id=round_id)))
            ((result,), _) = await read(stream)
            assert isinstance(result.outcome, Verdict)
            committed += result.outcome.tokens
            shown, last = shown + result.outcome.text, result.outcome
            if last.finish is not None:
                break
        assert (committed, shown) == (tokens, text)
        assert last is not None
        assert last.sources[0] is TokenSource.ACCEPTED


async def test_rounds_that_arrive_during_a_step_share_the_next_one_and_go_to_their_routers() -> None:
    engine = GatedEngine()
    first, second, third = (opening(f"s{i}", tokens=(i,), router_id=r) for i, r in enumerate(("r1", "r2", "r1")))
    async with served(engine) as target:
        await target.open(first, second, third)
        one, two = target.rounds(), target.rounds()
        await one.write(batch(task(first)))
        await eventually(lambda: engine.entered)
        await one.write(batch(task(third)))
        await two.write(batch(task(second), router="r2"))
        await eventually(lambda: target.verifier.waiting == 2)
        engine.gate.set()
        assert [r.fence.session_id for r in (await read(one))[0]] == ["s0"]
        (results_one, step_one), (results_two, step_two) = await read(one), await read(two)
        assert [r.fence.session_id for r in results_one] == ["s2"]
        assert [r.fence.session_id for r in results_two] == ["s1"]
        assert step_one == step_two
        assert (step_one.step_id, step_one.sessions) == (2, 2)


async def test_repetitions_and_resyncs_are_answered_without_a_step() -> None:
    source, stranger = opening(), opening("stranger")
    async with served() as target:
        await target.open(source)
        stream = target.rounds()
        await stream.write(batch(task(source)))
        ((first,), _) = await read(stream)
        await stream.write(batch(task(source), task(stranger), task(source, incarnation="inc-0")))
        results, step = await read(stream)
        assert results[0].outcome == first.outcome
        assert [each.outcome for each in results[1:]] == [
            Resync(ResyncReason.UNKNOWN_SESSION),
            Resync(ResyncReason.OTHER_INCARNATION, 4),
        ]
        assert step == StepReport()
        assert len(target.engine.plans) == 1


async def test_a_broken_round_does_not_harm_those_beside_it() -> None:
    source = opening()
    broken = pb.VerifyTask(fence=common.Fence(session_id="s1", round_id=7, prefix_digest=b"short"))
    async with served() as target:
        await target.open(source)
        stream = target.rounds()
        await stream.write(pb.VerifyBatch(router_id="r1", tasks=[broken, wire.to_verify_task(task(source))]))
        message = await asyncio.wait_for(stream.read(), 10)
        assert message.results[0].fence == broken.fence
        assert message.results[0].resync.reason == common.Resync.REASON_UNKNOWN_SESSION
        ((result,), _) = await read(stream)
        assert tokens_of(result) == plain(source)[0][:1]


async def test_the_end_of_a_stream_releases_its_routers_sessions() -> None:
    mine, other = opening("mine"), opening("other", router_id="r2")
    async with served() as target:
        await target.open(mine, other)
        stream = target.rounds()
        await stream.write(batch(task(mine)))
        await read(stream)
        await stream.done_writing()
        await eventually(lambda: target.verifier.sessions == 1)
        assert set(target.engine.held) == {"other"}


async def test_a_cancelled_stream_releases_sessions_in_a_step() -> None:
    engine = GatedEngine()
    async with served(engine) as target:
        await target.open(opening())
        stream = target.rounds()
        await stream.write(batch(task(opening())))
        await eventually(lambda: engine.entered)
        stream.cancel()
        await eventually(lambda: target.verifier.sessions == 0)
        engine.gate.set()
        await eventually(lambda: not target.engine.held)
        target.verifier.check_integrity()


async def test_a_router_that_reconnected_keeps_its_sessions_when_the_old_stream_ends() -> None:
    source = opening()
    async with served() as target:
        await target.open(source)
        old, new = target.rounds(), target.rounds()
        await old.write(batch())
        await new.write(batch(task(source)))
        ((first,), _) = await read(new)
        old.cancel()
        await asyncio.sleep(0.1)
        await new.write(batch(task(source, tokens_of(first), round_id=2)))
        ((result,), _) = await read(new)
        assert tokens_of(result) == plain(source)[0][1:2]


@pytest.mark.parametrize("ids", [("",), ("r1", "r2")])
async def test_a_stream_belongs_to_one_router(ids: tuple[str, ...]) -> None:
    async with served() as target:
        stream = target.rounds()
        for router in ids:
            await stream.write(batch(router=router))
        assert await code_of(anext(aiter(stream))) is grpc.StatusCode.INVALID_ARGUMENT


async def test_refusals_have_their_status() -> None:
    async with served(ScriptedEngine(kv_tokens=40), limits={"max_sessions": 2}) as target:
        await target.open(opening("s1", lease_epoch=5))
        refused = {
            grpc.StatusCode.INVALID_ARGUMENT: opening("s2", tokens=(99,)),
            grpc.StatusCode.FAILED_PRECONDITION: opening("s1", lease_epoch=4),
            grpc.StatusCode.RESOURCE_EXHAUSTED: opening("s2", max_tokens=30),
            grpc.StatusCode.UNAVAILABLE: opening("s2", numerics_class="class-b"),
        }
        for code, source in refused.items():
            assert await code_of(target.stub.Open(wire.to_open(source), timeout=5)) is code
        assert await code_of(target.stub.Open(common.SessionOpen(), timeout=5)) is grpc.StatusCode.INVALID_ARGUMENT
        for released in (True, False):
            answer = await target.stub.Release(common.ReleaseRequest(session_id="s1", lease_epoch=5), timeout=5)
            assert answer.released is released


async def test_the_tokenizer_comes_in_pieces() -> None:
    async with served() as target:
        chunks = [chunk async for chunk in target.stub.FetchTokenizer(pb.FetchTokenizerRequest(), timeout=5)]
    assert [(chunk.name, len(chunk.data), chunk.last) for chunk in chunks] == [
        ("tokenizer.json", FILE_CHUNK_BYTES, False),
        ("tokenizer.json", FILE_CHUNK_BYTES, True),
        ("empty.txt", 0, True),
    ]


async def test_a_failed_step_makes_routers_open_again_and_the_answer_goes_on() -> None:
    source, spans = opening(), RecordedSpans()
    async with served(ScriptedEngine(failures=2), spans=spans) as target:
        stream = target.rounds()
        for _ in range(2):
            await target.open(source)
            await stream.write(batch(task(source)))
            ((result,), step) = await read(stream)
            assert result.outcome == Resync(ResyncReason.UNKNOWN_SESSION)
        assert step.sessions == 1
        await target.open(source)
        await stream.write(batch(task(source)))
        assert tokens_of((await read(stream))[0][0]) == plain(source)[0][:1]
        assert not target.service.failed.is_set()
    assert [bool(span.error) for span in spans.steps] == [True, True, False]


async def test_three_failed_steps_in_a_row_are_the_end() -> None:
    source = opening()
    async with served(ScriptedEngine(failures=3)) as target:
        stream = target.rounds()
        for _ in range(3):
            await target.open(source)
            await stream.write(batch(task(source)))
            await read(stream)
        await asyncio.wait_for(target.service.failed.wait(), 10)


async def test_a_stuck_step_is_the_end() -> None:
    engine, source = GatedEngine(), opening()
    async with served(engine, step_limit_s=0.05) as target:
        await target.open(source)
        stream = target.rounds()
        await stream.write(batch(task(source)))
        ((result,), _) = await read(stream)
        assert result.outcome == Resync(ResyncReason.UNKNOWN_SESSION)
        await asyncio.wait_for(target.service.failed.wait(), 10)
        engine.gate.set()


async def test_idle_sessions_expire() -> None:
    async with served(limits={"session_ttl_s": 0.05}, housekeeping_s=0.02) as target:
        await target.open(opening())
        await eventually(lambda: target.verifier.sessions == 0)


async def test_health_and_reflection_answer() -> None:
    async with served() as target:
        health: Any = health_pb2_grpc.HealthStub(target.channel)
        for name in ("", SERVICE_NAME):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(target.channel)
        call = reflection.ServerReflectionInfo(timeout=5)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = await call.read()
        await call.done_writing()
        assert SERVICE_NAME in [service.name for service in listed.list_services_response.service]
        described = await target.stub.Describe(common.DescribeRequest(), timeout=5)
        assert described.incarnation == "inc-1"


async def test_a_router_that_does_not_read_loses_its_stream() -> None:
    stream = RouterStream(max_unsent=2)
    stream.name("r")
    for _ in range(4):
        stream.send(pb.VerifyBatchResult())
    assert isinstance(stream.failure, Overloaded)
    assert [message async for message in stream] == []
    with pytest.raises(InvalidRequest, match="router_id: expected r, got 'q'"):
        stream.name("q")


async def test_answers_of_routers_that_are_gone_are_dropped() -> None:
    streams = Streams()
    streams.deliver({"gone": []}, StepReport())
    nameless = streams.add()
    assert not streams.remove(nameless)
