"""What the tests of ``python -m paceline.draft`` and ``python -m paceline.target`` share."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from paceline.runtime.process import Ready, parse_ready


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """A port somebody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def start(service: str, *settings: str) -> tuple[subprocess.Popen[str], Ready]:
    """A worker that serves."""
    command = [sys.executable, "-m", f"paceline.{service}"]
    command += [word for setting in settings for word in ("--set", setting)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    ready = parse_ready(child.stdout.readline())
    assert ready is not None
    return child, ready


def ended_by(child: subprocess.Popen[str], number: signal.Signals) -> str:
    """What a worker has written to standard error, once a signal has ended it: in good order, and soon."""
    started = time.monotonic()
    child.send_signal(number)
    _, errors = child.communicate(timeout=10)
    assert child.returncode == 0, errors
    assert time.monotonic() - started < 4
    return errors
