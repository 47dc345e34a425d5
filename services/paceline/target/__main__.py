"""``python -m paceline.target``: one target verifier."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import uuid
from collections.abc import Sequence

from paceline.engine.loading import LoadedEngine
from paceline.runtime import process
from paceline.runtime.config import TargetConfig, field_help
from paceline.runtime.config import load as load_config
from paceline.runtime.server import WorkerServer, until_stopped
from paceline.speculation.errors import PacelineError
from paceline.target.assembly import describe, load, verifier_for
from paceline.target.service import SERVICE_NAME, TargetService, add_to
from paceline.telemetry.provider import setup
from paceline.telemetry.worker_spans import TargetSpans

EXIT_FAILED = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a target verifier until SIGTERM or SIGINT; returns the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if options.parent_pid:
        process.follow_parent(options.parent_pid)
    try:
        config = load_config(TargetConfig, options.config, options.overrides)
        loaded = load(config, _progress)
        return asyncio.run(serve(config, loaded))
    except (PacelineError, OSError) as error:
        _progress(str(error))
        return EXIT_USAGE
    except KeyboardInterrupt:  # while the model was loading
        return EXIT_FAILED


async def serve(config: TargetConfig, loaded: LoadedEngine) -> int:
    """Serve until stopped (0) or until the engine cannot be relied on any more (1). Raises OSError: port taken."""
    incarnation = uuid.uuid4().hex
    verifier = verifier_for(config, loaded, incarnation)
    tracing = setup(config.telemetry, "target", incarnation)
    description = describe(verifier, loaded)
    _progress(f"{verifier.info.model_id}: {verifier.info.kv_tokens} KV tokens, {config.step_tokens} tokens a step")
    service = TargetService(verifier, loaded.engine, description, loaded.tokenizer_files, spans=TargetSpans(tracing))
    server = WorkerServer(config.host, config.port, services=(SERVICE_NAME,), add=add_to(service))
    port = await server.start()
    service.start()
    stopped = asyncio.create_task(until_stopped())
    failed = asyncio.create_task(service.failed.wait())
    await asyncio.sleep(0)  # signals are handled before the parent hears of us
    process.announce("target", f"{config.host}:{port}", incarnation, verifier.info.model_id)
    await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
    for task in (stopped, failed):
        task.cancel()
    await server.set_serving(False)
    await service.stop()
    await server.stop()
    await asyncio.to_thread(tracing.shutdown)
    return EXIT_FAILED if service.failed.is_set() else 0


def _progress(line: str) -> None:
    sys.stderr.write(f"paceline target: {line}\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m paceline.target",
        description="A target verifier: checks draft tokens of many sessions at once and commits the target's own.",
        epilog="Fields of the configuration:\n\n" + field_help(TargetConfig),
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
    os._exit(code)  # an engine that is stuck in its thread must not hold up the exit
