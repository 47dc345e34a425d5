"""An OTLP collector with threads of its own, so that it serves whichever event loop a test runs on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc

from tests.unit.telemetry_collector import Collector, Received

POLL_S = 0.05


class Collecting(service_grpc.TraceServiceServicer):
    """Keeps every span it is sent."""

    def __init__(self) -> None:
        self._kept = Collector()
        self._server = grpc.server(ThreadPoolExecutor(4))
        service_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.stop(None).wait(5)

    def Export(  # noqa: N802
        self, request: service_pb2.ExportTraceServiceRequest, context: Any
    ) -> service_pb2.ExportTraceServiceResponse:
        return asyncio.run(self._kept.Export(request, context))  # it decodes and awaits nothing

    def trace(self, trace_id: str) -> list[Received]:
        """The spans of one trace so far."""
        return [span for span in list(self._kept.spans) if span.span.trace_id.hex() == trace_id]

    def linked_to(self, span_ids: set[bytes]) -> list[Received]:
        """The spans so far with a link to one of some spans."""
        return [span for span in list(self._kept.spans) if span_ids & set(span.links)]

    async def until(self, complete: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until what was collected is complete."""
        deadline = time.monotonic() + timeout_s
        while not complete():
            names = sorted(span.name for span in list(self._kept.spans)[-50:])
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}; the last spans were {names}"
            await asyncio.sleep(POLL_S)
