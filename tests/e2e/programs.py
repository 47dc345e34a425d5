"""The ``paceline`` program in processes of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

PACELINE = str(Path(sys.executable).with_name("paceline"))
MARK = "PACELINE_TEST_CLUSTER"
"""Names a cluster in the environment of every process it starts, whoever their parent is by then."""
RUN_S = 60.0
READY_S = 150.0
_READY = re.compile(r"paceline ready http=(\S+) grpc=(\S+) logs=(\S+)\n")


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended."""

    code: int
    out: str
    err: str


async def paceline(*arguments: str, stdin: str = "", **environment: str) -> Ran:
    """Run a command to its end."""
    process = await asyncio.create_subprocess_exec(
        PACELINE,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), RUN_S)
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"{arguments}: not done after {RUN_S:g} s; {out!r} {err[-2000:]!r}") from None
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


@dataclass(frozen=True, slots=True)
class Up:
    """``paceline up`` as it runs."""

    process: asyncio.subprocess.Process
    errors: Path
    mark: str
    http: str
    grpc: str
    logs: Path

    def send(self, number: signal.Signals) -> None:
        """Signal the program alone; what it started has sessions of its own."""
        self.process.send_signal(number)

    async def ended(self, timeout_s: float) -> int:
        """Its exit code."""
        try:
            return await asyncio.wait_for(self.process.wait(), timeout_s)
        except TimeoutError:
            raise AssertionError(f"paceline up: still there after {timeout_s:g} s\n{self.told()}") from None

    def told(self) -> str:
        """What it said on standard error, for the message of a failure."""
        return _end(self.errors)

    def started(self) -> set[psutil.Process]:
        """Every process that it started and that still runs, detached ones included."""
        found = set(marked(self.mark))
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= set(psutil.Process(self.process.pid).children(recursive=True))
        return {process for process in found if process.pid != self.process.pid}


@asynccontextmanager
async def up(errors: Path, *arguments: str) -> AsyncIterator[Up]:
    """``paceline up`` with free ports, ready; on the way out everything of it is killed."""
    mark = uuid.uuid4().hex
    with errors.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            PACELINE,
            *("up", "--http-port", "0", "--grpc-port", "0", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            env={**os.environ, MARK: mark},
        )
    try:
        http, grpc, logs = await _ready(process, errors)
        yield Up(process, errors, mark, http, grpc, Path(logs))
    finally:
        for each in marked(mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        await process.wait()


async def _ready(process: asyncio.subprocess.Process, errors: Path) -> tuple[str, str, str]:
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), READY_S)).decode()
    except TimeoutError:
        line = f"nothing within {READY_S:g} s"
    found = _READY.fullmatch(line)
    assert found, f"paceline up: expected its ready line, got {line!r}\n{_end(errors)}"
    return found[1], found[2], found[3]


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


def marked(mark: str) -> list[psutil.Process]:
    """Live processes with a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
