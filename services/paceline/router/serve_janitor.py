"""Sweeps up after a router's host process, however that ended.

Ray's agents outlive a killed host by a minute (they try to tell its dead control store), and nobody removes the
session folder. This process does, as soon as its standard input ends: when the host closes it, or dies. It is started
as a script, with the folder as its argument, by ``serve_home``; it stands on the standard library alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "PACELINE_ROUTER_HOME"
"""Environment variable that names the folder in every process Ray starts for the host."""
SWEEP_S = 5.0
POLL_S = 0.05


def main(folder: str) -> None:
    """Detach, wait for the end of standard input, sweep."""
    if os.fork():  # no child of the host: whoever kills a whole tree of processes must not take the janitor, too
        os._exit(0)
    os.setsid()
    sys.stdin.buffer.read()
    sweep(folder)
    shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: str) -> None:
    """Kill every process marked with the folder, and those they started meanwhile, for SWEEP_S seconds at most."""
    deadline = time.monotonic() + SWEEP_S
    while (found := list(_marked(folder))) and time.monotonic() < deadline:
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(POLL_S)


def _marked(folder: str) -> Iterator[int]:
    mark = f"{MARK}={folder}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()  # empty for one that is dead and not yet waited for
        except OSError:
            continue
        if mark in environment.split(b"\0") and int(entry.name) != os.getpid():
            yield int(entry.name)


if __name__ == "__main__":
    main(sys.argv[1])
