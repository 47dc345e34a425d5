"""Spans end to end: through the real exporter to a real OTLP servicer, from the nouns the services really use."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from paceline.draft.spans import DraftSpans as DraftSeam
from paceline.router.requests import Request, SamplingRequest
from paceline.router.spans import RouterSpans as RouterSeam
from paceline.speculation.errors import Unavailable
from paceline.speculation.messages import NO_TRACE, Trace
from paceline.target.spans import Spans as TargetSeam
from paceline.telemetry import names
from paceline.telemetry.provider import MAX_LINKS, Tracing, setup
from paceline.telemetry.router_spans import RouterSpans
from paceline.telemetry.worker_spans import DraftSpans, TargetSpans

from tests.unit.telemetry_collector import Collector, collecting
from tests.unit.telemetry_kit import CALLER, REQUEST, UNSAMPLED, B, completed, facts, part, run, step


class Cluster:
    """One service of each kind, telling one collector."""

    def __init__(self, collector: Collector, sample_ratio: float = 1.0) -> None:
        config = collector.config(sample_ratio)
        self._tracings: list[Tracing] = [
            setup(config, "router", "i-router"),
            setup(config, "draft", "i-draft"),
            setup(config, "target", "i-target"),
        ]
        router, draft, target = self._tracings
        self.router: RouterSeam = RouterSpans(router)
        self.draft: DraftSeam = DraftSpans(draft)
        self.target: TargetSeam = TargetSpans(target)

    def answer(self, request: Request = REQUEST) -> None:
        """One request of one round."""
        handle = self.router.start_request(request)
        trace = self.router.start_round(handle, 9)
        self.draft.draft_run(run(trace))
        self.target.verify_step(step(part(trace)))
        self.router.end_round(handle, facts())
        self.router.end_request(handle, completed())

    async def flush(self) -> None:
        flushed = await asyncio.gather(*(asyncio.to_thread(tracing.shutdown) for tracing in self._tracings))
        assert flushed == [True, True, True]


async def test_one_request_is_one_trace_across_services() -> None:
    async with collecting() as collector:
        cluster = Cluster(collector)
        cluster.answer()
        await cluster.flush()
    generate, round_, draft, verify, passed = (
        collector.one(name) for name in (names.GENERATE, names.ROUND, names.DRAFT, names.VERIFY, names.STEP)
    )
    assert generate.span.parent_span_id == b""
    assert round_.span.parent_span_id == generate.span.span_id
    assert draft.span.parent_span_id == verify.span.parent_span_id == round_.span.span_id
    assert len({span.span.trace_id for span in (generate, round_, draft, verify)}) == 1
    assert passed.span.trace_id != generate.span.trace_id
    assert passed.span.parent_span_id == b""
    services = [span.resource[names.SERVICE_NAME] for span in (generate, draft, verify)]
    assert services == ["paceline-router", "paceline-draft", "paceline-target"]
    assert verify.resource[names.SERVICE_INSTANCE_ID] == "i-target"
    assert verify.resource[names.SERVICE_VERSION]
    assert (draft.span.start_time_unix_nano, draft.span.end_time_unix_nano) == (1_000, 2_000)
    assert (verify.span.start_time_unix_nano, verify.span.end_time_unix_nano) == (3_000, 4_000)


async def test_attributes_say_what_was_asked_and_what_came() -> None:
    async with collecting() as collector:
        cluster = Cluster(collector)
        cluster.answer()
        await cluster.flush()
    assert collector.one(names.GENERATE).attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "paceline",
        "gen_ai.request.model": "demo",
        "gen_ai.request.temperature": 0.7,
        "gen_ai.request.top_k": 40,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 7,
        "gen_ai.request.max_tokens": 12,
        "gen_ai.response.model": "big",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 3,
        "paceline.request_id": "r-1",
        "paceline.tenant": "acme",
        "paceline.rounds": 1,
        "paceline.missed_drafts": 0,
        "paceline.drafted": 3,
        "paceline.verified": 3,
        "paceline.accepted": 2,
        "paceline.lossy": False,
        "paceline.tau": 3.0,
    }
    round_ = collector.one(names.ROUND).attributes
    assert round_["paceline.token.ids"] == [100, 101, 102]
    assert round_["paceline.token.model_ids"] == ["small", "small", "big"]
    assert round_["paceline.token.verifier_model_id"] == ["big", "big", "big"]
    assert round_["paceline.token.sources"] == ["accepted", "accepted", "corrected"]
    assert round_["paceline.token.positions"] == [4, 5, 6]
    assert (round_["paceline.round.id"], round_["paceline.lease.epoch"], round_["paceline.drafter"]) == (9, 2, "model")
    draft, verify = collector.one(names.DRAFT).attributes, collector.one(names.VERIFY).attributes
    assert (draft["paceline.model_id"], draft["paceline.draft.asked"], draft["paceline.drafted"]) == ("small", 4, 3)
    assert (verify["paceline.model_id"], verify["paceline.verified"], verify["paceline.accepted"]) == ("big", 3, 2)
    assert verify["paceline.token.ids"] == [100, 101, 102]


async def test_step_and_verify_spans_link_to_each_other_within_the_limit() -> None:
    riders = MAX_LINKS + 5
    async with collecting() as collector:
        cluster = Cluster(collector)
        handle = cluster.router.start_request(REQUEST)
        trace = cluster.router.start_round(handle, 9)
        parts = [part(trace, number) for number in range(riders)]
        cluster.target.verify_step(step(*parts, part(NO_TRACE), part(UNSAMPLED), part(Trace("nonsense"))))
        await cluster.flush()
    passed, verifies = collector.one(names.STEP), collector.named(names.VERIFY)
    assert len(verifies) == riders
    assert all(verify.links == [passed.span.span_id] for verify in verifies)
    by_session = {verify.attributes[names.SESSION_ID]: verify.span.span_id for verify in verifies}
    assert passed.links == [by_session[f"s{number}"] for number in range(MAX_LINKS)]
    assert passed.span.dropped_links_count == 0
    assert (passed.attributes[names.STEP_ID], passed.attributes[names.STEP_SESSIONS]) == (77, riders + 3)
    assert passed.attributes[names.STEP_TRACED] == riders


async def test_a_step_without_traced_rounds_leaves_no_span() -> None:
    async with collecting() as collector:
        cluster = Cluster(collector)
        cluster.target.verify_step(step(part(NO_TRACE), part(UNSAMPLED)))
        cluster.draft.draft_run(run(NO_TRACE, UNSAMPLED))
        await cluster.flush()
    assert collector.spans == []


async def test_a_callers_trace_is_joined_and_its_decision_followed() -> None:
    async with collecting() as collector:
        cluster = Cluster(collector, sample_ratio=0.0)
        cluster.answer(dataclasses.replace(REQUEST, trace=CALLER))
        cluster.answer(dataclasses.replace(REQUEST, trace=UNSAMPLED))
        await cluster.flush()
    generate = collector.one(names.GENERATE)
    assert generate.span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert generate.span.parent_span_id.hex() == "b7ad6b7169203331"
    assert generate.span.trace_state == "vendor=value"
    assert collector.one(names.VERIFY).span.trace_state == "vendor=value"


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0, 0), (0.3, 50, 130), (1.0, 300, 300)])
async def test_the_share_of_requests_traced_is_the_configured_one(ratio: float, low: int, high: int) -> None:
    async with collecting() as collector:
        cluster = Cluster(collector, ratio)
        for _ in range(300):
            cluster.answer()
            await asyncio.sleep(0)
        await cluster.flush()
    traced = len(collector.named(names.GENERATE))
    assert low <= traced <= high  # 0.3 of 300 is 90, ± 5 standard deviations
    assert len(collector.named(names.VERIFY)) == len(collector.named(names.STEP)) == traced


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (Unavailable("no target serves"), "Unavailable", "no target serves"),
        (ValueError("holds a prompt, perhaps"), "ValueError", ""),
        (asyncio.CancelledError(), "cancelled", "ended before it was complete"),
        (GeneratorExit(), "cancelled", "ended before it was complete"),
    ],
)
async def test_a_failed_request_says_why_and_ends_its_open_round(error: BaseException, kind: str, text: str) -> None:
    async with collecting() as collector:
        cluster = Cluster(collector)
        handle = cluster.router.start_request(dataclasses.replace(REQUEST, messages=None, text="hi"))
        cluster.router.start_round(handle, 1)
        cluster.router.end_round(handle, facts())
        cluster.router.start_round(handle, 2)
        cluster.router.start_round(handle, 3)
        cluster.router.end_request(handle, error)
        await cluster.flush()
    generate = collector.one(names.GENERATE)
    assert (generate.span.status.code, generate.span.status.message) == (Status.STATUS_CODE_ERROR, text)
    assert generate.attributes[names.ERROR_TYPE] == kind
    assert generate.attributes[names.USAGE_OUTPUT_TOKENS] == 3
    assert generate.attributes[names.OPERATION_NAME] == "text_completion"
    rounds = {span.attributes[names.ROUND_ID]: span for span in collector.named(names.ROUND)}
    assert sorted(rounds) == [1, 2, 3]
    assert names.ERROR_TYPE not in rounds[1].attributes
    assert [rounds[number].attributes[names.ERROR_TYPE] for number in (2, 3)] == ["lost", "lost"]


async def test_a_failed_step_or_run_is_an_error_on_its_spans() -> None:
    async with collecting() as collector:
        cluster = Cluster(collector)
        trace = cluster.router.start_round(cluster.router.start_request(REQUEST), 9)
        cluster.draft.draft_run(run(trace, error="out of memory"))
        cluster.target.verify_step(step(part(trace), error="out of memory"))
        await cluster.flush()
    for name in (names.DRAFT, names.STEP, names.VERIFY):
        status = collector.one(name).span.status
        assert (status.code, status.message) == (Status.STATUS_CODE_ERROR, "out of memory")


async def test_values_that_protobuf_refuses_lose_no_batch() -> None:
    sampling = SamplingRequest(seed=2**64 - 1, temperature=float("nan"))
    request = dataclasses.replace(REQUEST, model="\ud800" + "m" * 1000, tenant="\udfff", sampling=sampling)
    async with collecting() as collector:
        cluster = Cluster(collector)
        cluster.answer(request)
        await cluster.flush()
    attributes = collector.one(names.GENERATE).attributes
    assert attributes[names.REQUEST_MODEL] == "?" + "m" * 255
    assert attributes[names.TENANT] == "?"
    assert names.REQUEST_SEED not in attributes
    assert names.REQUEST_TEMPERATURE not in attributes


async def test_the_widest_rounds_fit_a_collectors_message() -> None:
    widest = facts(65, last=B, model="m" * 400)
    widest = dataclasses.replace(widest, model_ids=widest.verifier_ids)
    async with collecting() as collector:
        cluster = Cluster(collector)
        handle = cluster.router.start_request(REQUEST)
        for number in range(200):
            cluster.router.start_round(handle, number)
            cluster.router.end_round(handle, widest)
        await cluster.flush()
    assert len(collector.named(names.ROUND)) == 200
    assert 2**20 < max(collector.message_bytes) < 4 * 2**20


async def test_a_wider_round_is_our_bug() -> None:
    async with collecting() as collector:
        cluster = Cluster(collector)
        handle = cluster.router.start_request(REQUEST)
        for wrong in (facts(66), dataclasses.replace(facts(), positions=())):
            cluster.router.start_round(handle, 1)
            with pytest.raises(AssertionError):
                cluster.router.end_round(handle, wrong)
        await cluster.flush()


@pytest.mark.parametrize(("seed", "shown"), [(7, True), (2**64 - 1, False)])
async def test_the_session_and_a_drawn_seed_are_on_the_request(seed: int, shown: bool) -> None:
    async with collecting() as collector:
        cluster = Cluster(collector)
        handle = cluster.router.start_request(dataclasses.replace(REQUEST, sampling=SamplingRequest()))
        cluster.router.place(handle, "s-1", seed)
        cluster.router.end_request(handle, RuntimeError("over"))
        await cluster.flush()
    attributes = collector.one(names.GENERATE).attributes
    assert attributes[names.SESSION_ID] == "s-1"
    assert attributes.get(names.REQUEST_SEED) == (seed if shown else None)
