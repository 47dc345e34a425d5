"""TargetService in process, over a real channel."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from paceline.runtime import wire
from paceline.speculation.messages import (
    Resync,
    ResyncReason,
    StepReport,
    TokenSource,
    Verdict,
)
from paceline.target.service import FILE_CHUNK_BYTES, SERVICE_NAME
from paceline.v1 import common_pb2 as common
from paceline.v1 import target_pb2 as pb

from tests.unit.target_kit import STEP_S, ScriptedEngine, opening, plain, task
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


async def test_refusals_have_their_status() -> None:
    async with served(ScriptedEngine(kv_tokens=48), limits={"max_sessions": 2}) as target:
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
