"""What a live capture tells its platform: how much is kept, how much is not and why, how full its memory is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from paceline.target.capture_assembly import Capture
from paceline.telemetry import names

Read = Callable[[], Iterable[Observation]]


def expose(capture: Capture, meter: Meter) -> None:
    """Make the instruments of a capture; they are read whenever figures are sent."""
    counts, written = capture.engine.counts, capture.store.written
    meter.create_observable_counter(
        names.CAPTURE_SAMPLES, _each(lambda: [Observation(written.samples)]), "{sample}", "written to a target cache"
    )
    meter.create_observable_counter(
        names.CAPTURE_TOKENS, _each(lambda: [Observation(written.tokens)]), "{token}", "of samples written"
    )
    meter.create_observable_counter(
        names.CAPTURE_BYTES, _each(lambda: [Observation(written.size)]), "By", "of samples written"
    )

    def dropped() -> list[Observation]:
        by_reason = {"memory": counts.behind, "disk": written.lost, "elsewhere": counts.broken, "empty": counts.empty}
        return [Observation(count, {names.DROP_REASON: reason}) for reason, count in by_reason.items()]

    def memory() -> list[Observation]:
        by_stage = {"serving": capture.engine.held_bytes, "waiting": capture.store.waiting_bytes}
        return [Observation(size, {names.CAPTURE_STAGE: stage}) for stage, size in by_stage.items()]

    meter.create_observable_counter(
        names.CAPTURE_DROPPED, _each(dropped), "{session}", "chosen for capture and not kept"
    )
    meter.create_observable_gauge(names.CAPTURE_MEMORY, _each(memory), "By", "hidden states not written yet")


def _each(read: Read) -> list[Callable[[CallbackOptions], Iterable[Observation]]]:
    return [lambda options: read()]
