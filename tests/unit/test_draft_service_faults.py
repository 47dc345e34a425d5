"""What a draft service refuses, and what becomes of drafters that fail and routers that do not read."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from paceline.draft.intake import WINDOW_BYTES
from paceline.draft.streams import RouterStream, Streams
from paceline.drafters.ngram import NgramDrafter
from paceline.runtime import wire
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import DraftResult, Fence, Proposal
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2 as pb

from tests.unit.draft_kit import INCARNATION, CountingDrafter, opening, task
from tests.unit.draft_service_kit import PROMPT, GatedDrafter, RecordedSpans, batch, drafted, read, served


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
