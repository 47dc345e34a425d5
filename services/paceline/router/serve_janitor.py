"""Sweeps up after a router's host process, however that ended.

Ray's agents outlive a killed host by a minute (they try to tell its dead control store), and nobody removes the
session folder. This process does, as soon as its standard input ends: when the host closes it, or dies. It is started
as a script, with the folder as its argument, by ``serve_home``; it stands on the standard library alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
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
    host = os.getppid()
    if os.fork():  # no child of the host: whoever kills a whole tree of processes must not take the janitor, too
        os._exit(0)
    os.setsid()
    sys.stdin.buffer.read()
    sweep(folder, host)
    shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: str, host: int) -> None:
    """Kill every process of the folder but the host, and those they start meanwhile, for SWEEP_S seconds at most."""
    deadline = time.monotonic() + SWEEP_S
    while (found := [pid for pid in _marked(folder) if pid not in {host, os.getpid()}]) and time.monotonic() < deadline:
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(POLL_S)


def _marked(folder: str) -> Iterator[int]:
    mark = f"{MARK}={folder}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        if _inherited(process, mark) or _writes(process, f"{folder}/"):
            yield int(process.name)


def _inherited(process: Path, mark: bytes) -> bool:
    try:
        return mark in (process / "environ").read_bytes().split(b"\0")  # empty for one that is dead, not waited for
    except OSError:
        return False


def _writes(process: Path, folder: str) -> bool:
    """Whether a process has a file open there for writing, as all of Ray's have: their logs.

    The mark is not enough: Ray's agents write their title over their command line, and sometimes it reaches as far as
    their environment.
    """
    try:
        links = list((process / "fd").iterdir())
    except OSError:
        return False
    for link in links:
        try:
            if link.lstat().st_mode & stat.S_IWUSR and os.readlink(link).startswith(folder):
                return True
        except OSError:  # closed meanwhile
            continue
    return False


if __name__ == "__main__":
    main(sys.argv[1])
