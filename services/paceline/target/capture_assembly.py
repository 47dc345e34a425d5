"""From a configuration to an engine that captures what it serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paceline.cache.target import CacheSpec
from paceline.drafters.hidden.config import default_layer_ids
from paceline.engine.interface import Engine
from paceline.engine.taps import require_layers
from paceline.runtime.config import TargetConfig
from paceline.speculation.errors import InvalidRequest
from paceline.target.capture import CapturingEngine, Choice
from paceline.target.capture_store import CaptureStore, Segments


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture that runs."""

    engine: CapturingEngine
    store: CaptureStore

    def close(self) -> str:
        """Write all that waits; returns what to say at the end. Takes up to half a minute."""
        self.store.close()
        counts, written = self.engine.counts, self.store.written
        return (
            f"captured {written.samples} sessions of {written.tokens} tokens; gave up {counts.behind} for want of "
            f"memory, {counts.broken} that had begun elsewhere, {written.lost} for want of disk; "
            f"{counts.empty} had nothing to keep"
        )


def capture_of(config: TargetConfig, engine: Engine) -> Capture | None:
    """None if nothing is to be captured.

    Raises InvalidRequest for layers the target doesn't have, and if it is not said whose sessions may be kept.
    """
    asked, info = config.capture, engine.info
    if not asked.folder:
        return None
    if not asked.tenants:
        hint = "name those who agreed to it, or `*`"
        raise InvalidRequest("capture.tenants", expected="at least one tenant", got=asked.tenants, hint=hint)
    layers = asked.layers or default_layer_ids(info.layers)
    require_layers(layers, info.layers, "capture.layers")
    spec = CacheSpec(
        target_layer_ids=layers,
        hidden_size=info.hidden_size,
        target_model_name_or_path=config.engine.model,
        chat_template=info.model_id,
        max_length=info.context_length,
        more={
            "paceline_capture": {
                "fingerprint": info.fingerprint,
                "numerics_class": info.numerics_class,
                "share": asked.share,
                "tenants": list(asked.tenants),
            }
        },
    )
    store = CaptureStore(
        Segments(Path(asked.folder), spec, retention_bytes=asked.retention_bytes), queue_bytes=asked.memory_bytes
    )
    choice = Choice(frozenset(asked.tenants), asked.share)
    capturing = CapturingEngine(engine, choice, layers=layers, store=store.put, memory_bytes=asked.memory_bytes)
    return Capture(capturing, store)
