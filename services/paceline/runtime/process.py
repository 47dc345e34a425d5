"""How a worker process tells its parent that it serves: one line of JSON on standard output."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass

READY_PREFIX = "PACELINE-READY "


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker that serves."""

    service: str  # draft, target or router
    address: str  # host:port
    pid: int
    incarnation: str
    model_id: str

    def line(self) -> str:
        return READY_PREFIX + json.dumps(asdict(self))


def announce(service: str, address: str, incarnation: str, model_id: str) -> None:
    """Print the ready line."""
    sys.stdout.write(Ready(service, address, os.getpid(), incarnation, model_id).line() + "\n")
    sys.stdout.flush()


def parse_ready(line: str) -> Ready | None:
    """The Ready of a ready line; None for any other line."""
    if not line.startswith(READY_PREFIX):
        return None
    return Ready(**json.loads(line.removeprefix(READY_PREFIX)))
