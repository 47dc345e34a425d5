"""What ``python -m`` of every service shares: its arguments, its words on standard error, its exit."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from paceline.runtime import process
from paceline.runtime.config import Closed, field_help

Progress = Callable[[str], None]  # takes a line

EXIT_FAILED = 1
EXIT_USAGE = 2
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def begin(
    service: str,
    description: str,
    kind: type[Closed],
    arguments: Sequence[str] | None,
    *,
    level: int = logging.INFO,
    log_format: str = _LOG_FORMAT,
) -> argparse.Namespace:
    """Read the arguments, log to standard error, follow the parent if one is named.

    Returns:
        ``config`` and ``overrides``, as ``runtime.config.load`` takes them.
    """
    options = _parser(service, description, kind).parse_args(arguments)
    logging.basicConfig(level=level, stream=sys.stderr, format=log_format)
    if options.parent_pid:
        process.follow_parent(options.parent_pid)
    return options


def tell(service: str, line: str) -> None:
    """Say something on standard error."""
    sys.stderr.write(f"paceline {service}: {line}\n")
    sys.stderr.flush()


def leave(code: int) -> NoReturn:
    """Exit at once: a thread that is stuck, in an engine or in Ray, must not hold up the exit."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def _parser(service: str, description: str, kind: type[Closed]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m paceline.{service}",
        description=description,
        epilog="Fields of the configuration:\n\n" + field_help(kind),
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
