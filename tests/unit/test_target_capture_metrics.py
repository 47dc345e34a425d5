"""What a platform hears of a live capture."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from paceline.cache.target import TargetCache
from paceline.runtime.config import Telemetry
from paceline.target.capture_assembly import Capture
from paceline.target.capture_metrics import expose
from paceline.target.capture_store import CaptureStore, Segments
from paceline.telemetry import metering, names

from tests.unit.capture_kit import ALL, LAYERS, MEMORY, Target, engine
from tests.unit.target_cache_kit import SPEC
from tests.unit.target_kit import opening
from tests.unit.telemetry_collector import collecting


async def test_a_collector_hears_what_was_kept_and_what_was_not_and_why(tmp_path: Path) -> None:
    info, spec = engine().info, replace(SPEC, target_layer_ids=LAYERS)
    segments = Segments(tmp_path, replace(spec, hidden_size=info.hidden_size), retention_bytes=1 << 20)
    store = CaptureStore(segments, queue_bytes=MEMORY)
    target = Target(ALL, memory=10 * 2 * 3 * info.hidden_size, store=store.put)
    async with collecting() as collector:
        figures = metering.setup(collector.config(), "target", "inc-1", interval_s=3600)
        expose(Capture(target.engine, store), figures.meter)
        target.answer(opening("kept", max_tokens=20), [()] * 5)
        target.answer(opening("too long", max_tokens=20), [()] * 12)
        target.answer(opening("nothing said", max_tokens=20), [])
        target.open(opening("under way", max_tokens=20))
        target.submit(opening("under way", max_tokens=20), 1)
        target.step()
        store.close()
        await asyncio.to_thread(figures.shutdown)
    found = TargetCache.open(tmp_path / "000000")
    held = len(opening("under way").tokens) * 2 * 3 * info.hidden_size
    assert collector.figures.latest == {
        (names.CAPTURE_SAMPLES,): 1,
        (names.CAPTURE_TOKENS,): int(found.lengths.sum()),
        (names.CAPTURE_BYTES,): found.shard_end(0),
        (names.CAPTURE_DROPPED, "memory"): 1,
        (names.CAPTURE_DROPPED, "disk"): 0,
        (names.CAPTURE_DROPPED, "elsewhere"): 0,
        (names.CAPTURE_DROPPED, "empty"): 1,
        (names.CAPTURE_MEMORY, "serving"): held,
        (names.CAPTURE_MEMORY, "waiting"): 0,
    }
    assert collector.figures.resource[names.SERVICE_NAME] == "paceline-target"


async def test_without_an_answering_collector_figures_are_given_up_in_time() -> None:
    figures = metering.setup(Telemetry(otlp_endpoint="http://127.0.0.1:1"), "target", "inc-1")
    figures.meter.create_counter("paceline.test").add(1)
    started = time.monotonic()
    await asyncio.to_thread(figures.shutdown, 0.5)
    assert time.monotonic() - started < 3
