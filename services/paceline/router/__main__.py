"""``python -m paceline.router``: the router's host process, with Ray Serve and the replicas under it."""

from __future__ import annotations

import fcntl
import importlib
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from paceline.router.auth import load_keys
from paceline.router.ingress_ports import Reservation
from paceline.router.serve_home import Home
from paceline.runtime import command, process
from paceline.runtime.command import EXIT_FAILED, EXIT_USAGE
from paceline.runtime.config import RouterConfig, load
from paceline.speculation.errors import InvalidRequest, PacelineError

DESCRIPTION = "A router: terminates clients (gRPC, OpenAI-compatible HTTP) and runs their rounds."
STOP_DEADLINE_S = 20.0
"""Ray gets this long to end by itself; what is left then is killed."""
_POLL_S = 0.5
_LOG_FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"


class _Stopped(BaseException):
    """SIGTERM or SIGINT; raised wherever the main thread is, so that a start under way ends, too."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a router until SIGTERM or SIGINT; returns the exit code."""
    options = command.begin(
        "router", DESCRIPTION, RouterConfig, arguments, level=logging.WARNING, log_format=_LOG_FORMAT
    )
    _append_to_logs()
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _raise_stopped)
        return _serve(_checked(load(RouterConfig, options.config, options.overrides)))
    except InvalidRequest as error:
        command.tell("router", str(error))
        return EXIT_USAGE
    except PacelineError as error:
        command.tell("router", str(error))
        return EXIT_FAILED
    except (_Stopped, SystemExit):  # the latter from Ray's own handler of SIGTERM, while it starts
        return 0


def _checked(config: RouterConfig) -> RouterConfig:
    """The configuration, as far as it can be checked before Ray is started."""
    if not config.targets:
        raise InvalidRequest("targets", expected="at least one target verifier, host:port", got=[])
    load_keys(config)
    if not config.api_keys_file:
        return config
    return config.model_copy(update={"api_keys_file": str(Path(config.api_keys_file).absolute())})


def _serve(config: RouterConfig) -> int:
    with ExitStack() as stack:
        grpc_port = stack.enter_context(closing(Reservation("grpc_port", config.grpc_host, config.grpc_port)))
        http_port = stack.enter_context(closing(Reservation("http_port", config.http_host, config.http_port)))
        home = stack.enter_context(Home())
        stack.callback(_ignore_signals)
        serve: Any = importlib.import_module("paceline.router.serve")  # only now: Ray reads its environment on import
        router = serve.RayRouter(config, grpc_port, http_port, home)
        stack.callback(_within, STOP_DEADLINE_S, router.stop)
        facts = router.start()
        pids = [each.pid for each in facts]
        process.announce(
            "router", grpc_port.address, uuid.uuid4().hex, facts[0].model_id, http=http_port.address, pids=pids
        )
        while router.alive:
            time.sleep(_POLL_S)
    command.tell("router", "Ray has ended by itself; its logs went with it")
    return EXIT_FAILED


def _append_to_logs() -> None:
    """Replicas write to the same file; a shell's ``> file`` would have this process overwrite their lines."""
    for stream in (1, 2):
        with suppress(OSError):
            fcntl.fcntl(stream, fcntl.F_SETFL, fcntl.fcntl(stream, fcntl.F_GETFL) | os.O_APPEND)


def _within(deadline_s: float, stop: Any) -> None:
    """Stop in a thread, as Ray may never return; the janitor of ``serve_home`` ends what it leaves."""
    _ignore_signals()
    thread = threading.Thread(target=stop, name="stop", daemon=True)
    thread.start()
    thread.join(deadline_s)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    _ignore_signals()  # the first one is being obeyed
    raise _Stopped


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    command.leave(main())
