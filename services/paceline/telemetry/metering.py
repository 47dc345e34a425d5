"""Where counters and gauges go: to the collector of the spans, once a minute and when the service stops.

They are read when they are sent, so that counting is adding to a number. As with spans, nothing here is global, and
serving never waits for a collector.
"""

from __future__ import annotations

from importlib import metadata

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import Meter, NoOpMeter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from paceline.runtime.config import Telemetry
from paceline.telemetry.provider import EXPORT_DEADLINE_S, FLUSH_DEADLINE_S, Service, quieten, resource

INTERVAL_S = 60.0


class Metering:
    """One service's meter. Without a collector it is a no-op."""

    def __init__(self, meter: Meter, provider: MeterProvider | None = None) -> None:
        self.meter = meter
        self._provider = provider

    def shutdown(self, deadline_s: float = FLUSH_DEADLINE_S) -> None:
        """Send the last figures; gives up after ``deadline_s``. Blocks. Later calls do nothing."""
        provider, self._provider = self._provider, None
        if provider is not None:
            provider.shutdown(timeout_millis=deadline_s * 1000)


def setup(config: Telemetry, service: Service, incarnation: str, *, interval_s: float = INTERVAL_S) -> Metering:
    """The metering of one service."""
    if not config.otlp_endpoint:
        return Metering(NoOpMeter("paceline"))
    quieten()
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=config.otlp_endpoint, timeout=EXPORT_DEADLINE_S),
        export_interval_millis=interval_s * 1000,
        export_timeout_millis=EXPORT_DEADLINE_S * 1000,
    )
    provider = MeterProvider((reader,), resource(service, incarnation), shutdown_on_exit=False)
    return Metering(provider.get_meter("paceline", metadata.version("paceline")), provider)
