"""How a worker process and its parent keep in touch: one line of JSON when it serves, and no life without a parent."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

READY_PREFIX = "PACELINE-READY "
PARENT_POLL_S = 1.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker that serves."""

    service: str  # draft, target or router
    address: str  # host:port
    pid: int
    incarnation: str
    model_id: str
    http: str = ""  # host:port of a router's HTTP ingress
    pids: tuple[int, ...] = ()  # a router's replicas, which serve behind the pid above

    def line(self) -> str:
        return READY_PREFIX + json.dumps(asdict(self))


def announce(
    service: str, address: str, incarnation: str, model_id: str, *, http: str = "", pids: Sequence[int] = ()
) -> None:
    """Print the ready line."""
    ready = Ready(service, address, os.getpid(), incarnation, model_id, http, tuple(pids))
    sys.stdout.write(ready.line() + "\n")
    sys.stdout.flush()


def parse_ready(line: str) -> Ready | None:
    """The Ready of a ready line; None for any other line, such as one another thread's output ran into."""
    if not line.startswith(READY_PREFIX):
        return None
    try:
        fields = json.loads(line.removeprefix(READY_PREFIX))
        return Ready(**fields | {"pids": tuple(fields.get("pids", ()))})
    except (ValueError, TypeError, AttributeError):
        return None


def follow_parent(parent_pid: int) -> None:
    """End this process, at once, when its parent ends.

    Linux does it by itself, but not if the parent died before this was called or only its starting thread did; a
    daemon thread that looks once a second covers the rest, and other systems.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_exit_with, args=(parent_pid,), name="follow-parent", daemon=True).start()


def _exit_with(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(PARENT_POLL_S)
    os._exit(1)
