"""Where spans go: one provider per service, to an OTLP collector if there is one.

Nothing here is global, since a test process holds several services. Serving never waits for a collector: spans queue up
to ``QUEUE_SPANS``, then the oldest are lost; a thread of its own sends them, each batch within ``EXPORT_DEADLINE_S``.
"""

from __future__ import annotations

import logging
import threading
import time
from importlib import metadata
from typing import Literal

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NoOpTracer, Span, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from paceline.runtime.config import Telemetry
from paceline.speculation.messages import NO_TRACE, Trace
from paceline.telemetry import names

Service = Literal["router", "draft", "target"]

QUEUE_SPANS = 2048
BATCH_SPANS = 64  # of at most 40 KB (see router_spans), so a message stays below the 4 MiB that collectors accept
SCHEDULE_DELAY_MS = 1000
EXPORT_DEADLINE_S = 5.0  # retries included
FLUSH_DEADLINE_S = 3.0
MAX_LINKS = 128  # the SDK keeps as many and drops the oldest beyond
MAX_ROUND_TOKENS = 65  # at most 64 draft tokens are verified, and the target adds one
MAX_TEXT_CHARS = 256  # of a string attribute; Jaeger's Elasticsearch index ignores longer ones
QUIET_S = 60.0  # a collector that is down, or a caller's broken trace context, is told about this often

_SDK_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.trace.propagation.tracecontext",
    "opentelemetry.trace.span",
)
_W3C = TraceContextTextMapPropagator()


class Quiet(logging.Filter):
    """Lets one record through per logger, template and ``QUIET_S``: the SDK logs every batch it could not send."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key, now = (record.name, str(record.msg)), time.monotonic()
        if now < self._next.get(key, 0.0):
            return False
        if len(self._next) >= 64:  # a template with a value in it
            self._next.clear()
        self._next[key] = now + QUIET_S
        return True


_QUIET = Quiet()


class Tracing:
    """One service's tracer. Without a collector it is a no-op, and ``enabled`` tells callers to skip the work."""

    def __init__(
        self, tracer: Tracer, provider: TracerProvider | None = None, exporter: OTLPSpanExporter | None = None
    ) -> None:
        self.tracer = tracer
        self.enabled = provider is not None
        self._provider, self._exporter = provider, exporter

    def shutdown(self, deadline_s: float = FLUSH_DEADLINE_S) -> bool:
        """Send what is queued; gives up after ``deadline_s``. Blocks: on an event loop, use ``asyncio.to_thread``.

        Returns:
            Whether everything was handed over in time. Later spans are dropped, later calls do nothing.
        """
        provider, exporter = self._provider, self._exporter
        self._provider = self._exporter = None
        if provider is None or exporter is None:
            return True
        # The SDK waits 30 s for its own thread and takes no other number, so it waits in a thread of ours.
        flusher = threading.Thread(target=provider.shutdown, name="paceline-telemetry-flush", daemon=True)
        flusher.start()
        flusher.join(deadline_s)
        if flusher.is_alive():
            exporter.shutdown()  # cancels the call under way and ends its retries
            return False
        return True


def setup(config: Telemetry, service: Service, incarnation: str) -> Tracing:
    """The tracing of one service."""
    if not config.otlp_endpoint:
        return Tracing(NoOpTracer())
    quieten()
    exporter = OTLPSpanExporter(endpoint=config.otlp_endpoint, timeout=EXPORT_DEADLINE_S)
    provider = TracerProvider(
        # Only requests are sampled. Workers follow the round; the spans they root are steps in which a traced round
        # rode, and dropping one of those would leave links to nothing.
        sampler=ParentBased(TraceIdRatioBased(config.sample_ratio) if service == "router" else ALWAYS_ON),
        resource=resource(service, incarnation),
        shutdown_on_exit=False,
        span_limits=SpanLimits(max_span_attributes=64, max_links=MAX_LINKS, max_events=16),
    )
    processor = BatchSpanProcessor(
        exporter,
        max_queue_size=QUEUE_SPANS,
        max_export_batch_size=BATCH_SPANS,
        schedule_delay_millis=SCHEDULE_DELAY_MS,
    )
    provider.add_span_processor(processor)
    return Tracing(provider.get_tracer("paceline", metadata.version("paceline")), provider, exporter)


def quieten() -> None:
    """Have the SDK tell of a collector that does not answer now and then, not each time."""
    for name in _SDK_LOGGERS:
        logging.getLogger(name).addFilter(_QUIET)  # adding it twice has no effect


def inject(span: Span) -> Trace:
    """The trace context that makes a remote span a child of this one."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, set_span_in_context(span, Context()))
    return Trace(carrier["traceparent"], carrier.get("tracestate", "")) if carrier else NO_TRACE


def extract(trace: Trace) -> Context:
    """The context to start a child in; an empty one if the trace is missing or malformed."""
    carrier = {"traceparent": trace.traceparent}
    if trace.tracestate:
        carrier["tracestate"] = trace.tracestate
    return _W3C.extract(carrier, Context())


def sampled(context: Context) -> bool:
    """Whether the context's span is recorded, so that its children will be."""
    return get_current_span(context).get_span_context().trace_flags.sampled


def text(value: str) -> str:
    """A string attribute: bounded, and always valid UTF-8, as one lone surrogate would lose the whole batch."""
    return value[:MAX_TEXT_CHARS].encode("utf-8", "replace").decode("utf-8")


def resource(service: Service, incarnation: str) -> Resource:
    """What tells this process's spans and figures from others'."""
    return Resource.create(
        {
            names.SERVICE_NAME: f"paceline-{service}",
            names.SERVICE_INSTANCE_ID: incarnation,
            names.SERVICE_VERSION: metadata.version("paceline"),
        }
    )
