"""``python -m paceline.draft``: one draft worker."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import uuid
from collections.abc import Sequence

from paceline.draft.assembly import Offered, assemble, describe
from paceline.draft.service import SERVICE_NAME, DraftService, add_to
from paceline.draft.worker import DraftWorker
from paceline.runtime import process
from paceline.runtime.config import DraftConfig, field_help, load
from paceline.runtime.server import WorkerServer, until_stopped
from paceline.speculation.errors import PacelineError
from paceline.telemetry.provider import setup
from paceline.telemetry.worker_spans import DraftSpans

EXIT_FAILED = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a draft worker until SIGTERM or SIGINT; returns the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if options.parent_pid:
        process.follow_parent(options.parent_pid)
    try:
        config = load(DraftConfig, options.config, options.overrides)
        offered = assemble(config, _progress)
        return asyncio.run(serve(config, offered))
    except (PacelineError, OSError) as error:
        _progress(str(error))
        return EXIT_USAGE
    except KeyboardInterrupt:  # while the model was loading
        return EXIT_FAILED


async def serve(config: DraftConfig, offered: list[Offered]) -> int:
    """Serve until stopped (0) or until a drafter cannot be relied on any more (1). Raises OSError: port taken."""
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
    service = DraftService(worker, describe(config, offered, incarnation), spans=DraftSpans(tracing))
    server = WorkerServer(config.host, config.port, services=(SERVICE_NAME,), add=add_to(service))
    port = await server.start()
    service.start()
    stopped = asyncio.create_task(until_stopped())
    failed = asyncio.create_task(service.failed.wait())
    await asyncio.sleep(0)  # signals are handled before the parent hears of us
    process.announce("draft", f"{config.host}:{port}", incarnation, worker.model_id(""))
    await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
    for task in (stopped, failed):
        task.cancel()
    await server.set_serving(False)
    await service.stop()
    await server.stop()
    await asyncio.to_thread(tracing.shutdown)
    return EXIT_FAILED if service.failed.is_set() else 0


def _progress(line: str) -> None:
    sys.stderr.write(f"paceline draft: {line}\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m paceline.draft",
        description="A draft worker: proposes tokens for many sessions at once.",
        epilog="Fields of the configuration:\n\n" + field_help(DraftConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the fields below")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="one field, dotted; repeatable",
    )
    parser.add_argument("--parent-pid", type=int, metavar="PID", help="exit when this parent process does")
    return parser


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # a drafter that is stuck in its thread must not hold up the exit
