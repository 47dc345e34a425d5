"""A collector that is missing, dead or hung costs serving nothing; contexts survive the wire."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry import trace as otel
from opentelemetry.context import Context
from paceline.router.requests import Request
from paceline.runtime.config import Telemetry, parse
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import NO_TRACE, Trace
from paceline.telemetry.provider import QUEUE_SPANS, Quiet, Tracing, extract, inject, sampled, setup
from paceline.telemetry.router_spans import RouterSpans
from paceline.telemetry.worker_spans import DraftSpans, TargetSpans

from tests.unit.telemetry_collector import collecting
from tests.unit.telemetry_kit import CALLER, REQUEST, UNSAMPLED, completed, facts, part, run, step


@pytest.fixture
def dead() -> str:
    """An endpoint nobody listens at."""
    return "http://127.0.0.1:1"


@pytest.fixture
def hung() -> Iterator[str]:
    """A collector that takes connections and never answers a call."""
    release = threading.Event()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:  # type: ignore[type-arg]
            return grpc.unary_unary_rpc_method_handler(lambda request, context: request if release.wait(30) else b"")

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}"
    release.set()
    server.stop(None).wait()


def serve(tracing: Tracing, rounds: int) -> float:
    """Rounds of one request; returns the seconds they took."""
    router, target = RouterSpans(tracing), TargetSpans(tracing)
    started = time.perf_counter()
    handle = router.start_request(REQUEST)
    for number in range(rounds):
        trace = router.start_round(handle, number)
        target.verify_step(step(part(trace)))
        router.end_round(handle, facts())
    router.end_request(handle, completed())
    return time.perf_counter() - started


@pytest.mark.parametrize("kind", ["dead", "hung"])
async def test_without_an_answering_collector_serving_goes_on_and_shutdown_keeps_its_deadline(
    kind: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    tracing = setup(Telemetry(otlp_endpoint=request.getfixturevalue(kind)), "router", "i")
    with caplog.at_level(logging.WARNING):
        took = serve(tracing, QUEUE_SPANS)  # three times as many spans as are kept
        started = time.monotonic()
        flushed = await asyncio.to_thread(tracing.shutdown, 0.5)
        assert time.monotonic() - started < 5
        assert not flushed
        serve(tracing, 10)  # spans that come too late are dropped in silence
    assert took < 20  # the SDK alone takes under a second here, on a machine with nothing else to do
    assert len(caplog.records) <= 6, caplog.messages


async def test_a_second_shutdown_does_nothing(dead: str) -> None:
    tracing = setup(Telemetry(otlp_endpoint=dead), "draft", "i")
    assert await asyncio.to_thread(tracing.shutdown)
    assert tracing.shutdown()


def test_unconfigured_it_does_nothing_and_passes_the_callers_context_on() -> None:
    tracing = setup(Telemetry(), "router", "i")
    router = RouterSpans(tracing)
    handle = router.start_request(Request(trace=CALLER))
    assert not tracing.enabled
    assert handle.trace() == router.start_round(handle, 1) == CALLER
    router.end_round(handle, facts())
    router.end_request(handle, completed())
    TargetSpans(tracing).verify_step(step(part(CALLER)))
    DraftSpans(tracing).draft_run(run(CALLER))
    assert tracing.shutdown()
    assert serve(tracing, 1000) < 0.5  # an empty call costs microseconds


async def test_nothing_global_is_set(dead: str) -> None:
    before = otel.get_tracer_provider()
    tracing = setup(Telemetry(otlp_endpoint=dead), "target", "i")
    assert otel.get_tracer_provider() is before
    assert otel.get_current_span() is otel.INVALID_SPAN
    await asyncio.to_thread(tracing.shutdown)


async def test_contexts_survive_the_wire() -> None:
    async with collecting() as collector:
        tracing = setup(collector.config(), "router", "i")
        span = tracing.tracer.start_span("x", extract(CALLER))
        trace = inject(span)
        far = otel.get_current_span(extract(trace)).get_span_context()
        near = span.get_span_context()
        assert (far.trace_id, far.span_id, far.trace_flags) == (near.trace_id, near.span_id, near.trace_flags)
        assert trace.tracestate == CALLER.tracestate
        assert far.is_remote
        await asyncio.to_thread(tracing.shutdown)


@pytest.mark.parametrize(
    "trace",
    [
        NO_TRACE,
        Trace("nonsense"),
        Trace("00-" + "0" * 32 + "-b7ad6b7169203331-01"),
        Trace("9" * 10_000),
        Trace("", "vendor=value"),
    ],
)
def test_a_malformed_context_counts_as_none(trace: Trace) -> None:
    assert extract(trace) == Context()
    assert not sampled(extract(trace))
    assert inject(otel.get_current_span(extract(trace))) == NO_TRACE


def test_a_context_says_whether_it_is_sampled() -> None:
    assert sampled(extract(CALLER))
    assert not sampled(extract(UNSAMPLED))


def test_an_oversized_tracestate_is_left_out() -> None:
    assert inject(otel.get_current_span(extract(Trace(CALLER.traceparent, "a=b," * 5000)))).tracestate == ""


def test_logs_of_the_sdk_come_once_per_template() -> None:
    quiet = Quiet()

    def passes(template: str) -> bool:
        return quiet.filter(logging.LogRecord("sdk", logging.WARNING, __file__, 1, template, None, None))

    assert [passes("a"), passes("a"), passes("b"), passes("b")] == [True, False, True, False]
    assert all(passes(str(number)) for number in range(1000))


@pytest.mark.parametrize("endpoint", ["localhost:4317", "grpc://x:1", "http://"])
def test_an_endpoint_without_a_scheme_is_refused_at_start_up(endpoint: str) -> None:
    with pytest.raises(InvalidRequest, match="otlp_endpoint"):
        parse(Telemetry, {"otlp_endpoint": endpoint})
