"""``python -m paceline.target``: one target verifier."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from paceline.runtime import command
from paceline.runtime.command import Progress
from paceline.runtime.compute import ComputeThread
from paceline.runtime.config import TargetConfig
from paceline.runtime.server import WorkerServer
from paceline.runtime.worker import run, serve_until_stopped
from paceline.target.assembly import compiler_for, describe, load, verifier_for
from paceline.target.capture_assembly import capture_of
from paceline.target.capture_metrics import expose
from paceline.target.service import SERVICE_NAME, TargetService, add_to
from paceline.telemetry import metering
from paceline.telemetry.provider import setup
from paceline.telemetry.worker_spans import TargetSpans

DESCRIPTION = "A target verifier: checks draft tokens of many sessions at once and commits the target's own."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a target verifier until SIGTERM or SIGINT; returns the exit code."""
    return run("target", DESCRIPTION, TargetConfig, serve, arguments)


async def serve(config: TargetConfig, progress: Progress) -> int:
    """Load and serve until stopped (0) or until the engine cannot be relied on any more (1).

    Raises what ``load`` raises, and OSError: port taken.
    """
    thread = ComputeThread("engine")
    loaded = await thread.run(partial(load, config, progress))
    incarnation = uuid.uuid4().hex
    capture = capture_of(config, loaded.engine)
    if capture is not None:
        loaded = replace(loaded, engine=capture.engine)
    verifier = verifier_for(config, loaded, incarnation)
    tracing = setup(config.telemetry, "target", incarnation)
    figures = metering.setup(config.telemetry, "target", incarnation)  # sends nothing while there are none
    if capture is not None:
        expose(capture, figures.meter)
    description = describe(verifier, loaded)
    progress(f"{verifier.info.model_id}: {verifier.info.kv_tokens} KV tokens, {config.step_tokens} tokens a step")
    spans = TargetSpans(tracing)
    service = TargetService(
        verifier,
        loaded.engine,
        description,
        loaded.tokenizer_files,
        thread=thread,
        compiler=compiler_for(loaded),
        spans=spans,
    )
    server = WorkerServer(config.host, config.port, services=(SERVICE_NAME,), add=add_to(service))

    def shut_down() -> None:
        if capture is not None:
            progress(capture.close())
        figures.shutdown()
        tracing.shutdown()

    return await serve_until_stopped("target", server, service, verifier.info.model_id, shut_down)


if __name__ == "__main__":
    command.leave(main())
