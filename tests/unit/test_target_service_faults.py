"""Broken rounds, lost streams, failing engines: what becomes of the others."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from paceline.runtime import wire
from paceline.runtime.server import MAX_MESSAGE_BYTES
from paceline.speculation.errors import InvalidRequest, Overloaded
from paceline.speculation.messages import (
    Resync,
    ResyncReason,
    StepReport,
    TokenLogprobs,
    TokenSource,
    Verdict,
    VerifyResult,
)
from paceline.target.streams import RouterStream, Streams
from paceline.v1 import common_pb2 as common
from paceline.v1 import target_pb2 as pb

from tests.unit.target_kit import ScriptedEngine, opening, plain, task
from tests.unit.target_service_kit import (
    GatedEngine,
    RecordedSpans,
    batch,
    code_of,
    eventually,
    read,
    served,
    tokens_of,
)


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


async def test_a_router_that_does_not_read_loses_its_stream() -> None:
    stream = RouterStream(max_unsent=2)
    stream.name("r")
    for _ in range(4):
        stream.send(pb.VerifyBatchResult())
    with pytest.raises(Overloaded, match="router r leaves 2 messages unread"):
        await anext(aiter(stream))
    with pytest.raises(InvalidRequest, match="router_id: expected r, got 'q'"):
        stream.name("q")


async def test_answers_of_routers_that_are_gone_are_dropped() -> None:
    streams = Streams()
    streams.deliver({"gone": []}, StepReport())
    nameless = streams.add()
    assert not streams.remove(nameless)


async def test_answers_too_large_for_one_message_go_in_several() -> None:
    logprobs = (TokenLogprobs(-1.0, 1, tuple(range(2**20, 2**20 + 20)), (-1.0,) * 20),) * 2000
    verdict = Verdict((1,), (TokenSource.TARGET_ONLY,), 0, 0, logprobs=logprobs[:1], prompt_logprobs=logprobs)
    answers = [VerifyResult(task(opening(f"s{i}")).fence, verdict) for i in range(9)]
    streams = Streams()
    stream = streams.add()
    stream.name("r1")
    streams.deliver({"r1": answers}, StepReport(7, 9, 9, 1))
    stream.close()
    messages = [message async for message in stream]
    assert len(messages) > 1
    assert all(message.ByteSize() < MAX_MESSAGE_BYTES / 2 for message in messages)
    assert [wire.from_verify_result(result) for message in messages for result in message.results] == answers
    assert [message.step.step_id for message in messages] == [7] + [0] * (len(messages) - 1)
