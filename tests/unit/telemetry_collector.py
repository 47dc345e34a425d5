"""A real OTLP collector in the test's process: the spans and figures that arrive over gRPC, as plain values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from paceline.runtime.config import Telemetry


@dataclass(frozen=True)
class Received:
    """One span as the collector got it."""

    span: Span
    resource: Mapping[str, Any]
    attributes: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def links(self) -> list[bytes]:
        return [link.span_id for link in self.span.links]


Figure = tuple[str, *tuple[str, ...]]  # a metric's name, then the values of its attributes


@dataclass
class Figures(metrics_grpc.MetricsServiceServicer):
    """Keeps what every figure it is sent was last."""

    latest: dict[Figure, int] = field(default_factory=dict)
    resource: Mapping[str, Any] = field(default_factory=dict)

    async def Export(  # noqa: N802
        self, request: metrics_pb2.ExportMetricsServiceRequest, context: Any
    ) -> metrics_pb2.ExportMetricsServiceResponse:
        for group in request.resource_metrics:
            self.resource = _values(group.resource.attributes)
            for metric in (metric for scope in group.scope_metrics for metric in scope.metrics):
                for point in getattr(metric, str(metric.WhichOneof("data"))).data_points:
                    self.latest[metric.name, *_values(point.attributes).values()] = point.as_int
        return metrics_pb2.ExportMetricsServiceResponse()


@dataclass
class Collector(service_grpc.TraceServiceServicer):
    """Keeps every span it is sent."""

    endpoint: str = ""
    figures: Figures = field(default_factory=Figures)
    spans: list[Received] = field(default_factory=list)
    message_bytes: list[int] = field(default_factory=list)

    async def Export(  # noqa: N802
        self, request: service_pb2.ExportTraceServiceRequest, context: Any
    ) -> service_pb2.ExportTraceServiceResponse:
        self.message_bytes.append(request.ByteSize())
        for group in request.resource_spans:
            resource = _values(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans.extend(Received(span, resource, _values(span.attributes)) for span in scope.spans)
        return service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Received]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Received:
        (span,) = self.named(name)
        return span

    def config(self, sample_ratio: float = 1.0) -> Telemetry:
        return Telemetry(otlp_endpoint=self.endpoint, sample_ratio=sample_ratio)


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on a free port, with the message limit collectors have by default."""
    collector = Collector()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 4 * 1024 * 1024)])
    service_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    metrics_grpc.add_MetricsServiceServicer_to_server(collector.figures, server)  # type: ignore[no-untyped-call]
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)


def _values(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
