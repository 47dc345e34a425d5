"""``python -m paceline.draft``: one draft worker."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import partial

from paceline.draft.assembly import assemble, describe
from paceline.draft.service import SERVICE_NAME, DraftService, add_to
from paceline.draft.worker import DraftWorker
from paceline.runtime import command
from paceline.runtime.command import Progress
from paceline.runtime.compute import ComputeThread
from paceline.runtime.config import DraftConfig
from paceline.runtime.server import WorkerServer
from paceline.runtime.worker import run, serve_until_stopped
from paceline.telemetry.provider import setup
from paceline.telemetry.worker_spans import DraftSpans

DESCRIPTION = "A draft worker: proposes tokens for many sessions at once."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a draft worker until SIGTERM or SIGINT; returns the exit code."""
    return run("draft", DESCRIPTION, DraftConfig, serve, arguments)


async def serve(config: DraftConfig, progress: Progress) -> int:
    """Load and serve until stopped (0) or until a drafter cannot be relied on any more (1).

    Raises what ``assemble`` raises, and OSError: port taken.
    """
    thread = ComputeThread("engine")
    offered = await thread.run(partial(assemble, config, progress))
    incarnation = uuid.uuid4().hex
    worker = DraftWorker(
        [each.drafter for each in offered],
        config.default_drafter,
        incarnation=incarnation,
        max_sessions=config.max_sessions,
        max_queue=config.max_queue,
        max_draft_tokens=config.max_draft_tokens,
        session_ttl_s=config.session_ttl_s,
    )
    tracing = setup(config.telemetry, "draft", incarnation)
    service = DraftService(
        worker,
        describe(config, offered, incarnation),
        threads={each.drafter.name: thread for each in offered if each.has_engine},
        spans=DraftSpans(tracing),
    )
    server = WorkerServer(config.host, config.port, services=(SERVICE_NAME,), add=add_to(service))
    return await serve_until_stopped("draft", server, service, worker.model_id(""), tracing.shutdown)


if __name__ == "__main__":
    command.leave(main())
