"""One child process: started, watched, restarted within bounds, and ended so that nothing of it is left.

It leads its own session, so a terminal's Ctrl-C reaches the parent alone, and is killed by the kernel (Linux) when
the parent dies, even by SIGKILL. Both output streams go to one log file: no pipe can fill up or break, and what the
child said last survives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import psutil

from paceline.runtime.process import Ready, parse_ready
from paceline.speculation.errors import Unavailable

POLL_S = 0.02
TAIL_BYTES = 8192
TAIL_LINES = 15
KILL_WAIT_S = 5.0

# Asks the kernel for a SIGKILL at the parent's death and becomes the real child. A process of its own instead of
# preexec_fn: forking a process that has threads (gRPC's, torch's) and running Python in the fork can deadlock.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class State(Enum):
    """Where a child is in its life."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class StartFailed(Unavailable):
    """A child did not get ready; the message ends with the last lines of its log."""

    def __init__(self, name: str, *, got: str, log: Path, tail: str, returncode: int | None) -> None:
        self.returncode = returncode
        super().__init__(f"{name}: expected it to get ready, got {got}; its log is {log}\n{tail}".rstrip())


@dataclass(frozen=True, slots=True)
class Restart:
    """How often a dead child comes back, and how soon."""

    limit: int = 5
    """Restarts in a row; 0 never restarts."""
    backoff_s: float = 0.25
    """Pause before the first one; doubles each time."""
    backoff_max_s: float = 8.0
    """Longest pause."""
    healthy_s: float = 30.0
    """A child that was ready this long starts a new row."""

    def pause_s(self, restarts: int) -> float:
        return float(min(self.backoff_s * 2**restarts, self.backoff_max_s))


NEVER = Restart(limit=0)


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A child: ``python *arguments``, which prints a ready line."""

    name: str
    arguments: tuple[str, ...]
    ready_timeout_s: float = 300.0
    restart: Restart = NEVER
    stop_stage: int = 0
    """Stages stop one after the other, in ascending order."""
    environment: Mapping[str, str] | None = None

    def command(self, ready: Ready | None) -> list[str]:
        """The command line; a child that was ready before must come back on its port, where others look for it."""
        same_port = () if ready is None else ("--set", f"port={ready.address.rpartition(':')[2]}")
        launcher = ("-I", "-S", "-c", _LAUNCHER, str(os.getpid())) if sys.platform == "linux" else ()
        return [sys.executable, *launcher, *self.arguments, "--parent-pid", str(os.getpid()), *same_port]


Observer = Callable[[str, State, str], None]
"""Told of a child's name, its new state and, if there is more to say, the detail."""


class Child:
    """One child process through all its restarts. Made by ``Supervisor.start``."""

    def __init__(self, spec: ProcessSpec, log: Path, observe: Observer) -> None:
        self.spec, self.log = spec, log
        self.state = State.STARTING
        self.ready: Ready | None = None
        self.restarts = 0
        self._observe = observe
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Process id of a live child."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process else None

    async def start(self) -> Ready:
        """Start and wait for the ready line. Raises StartFailed."""
        try:
            ready = await self._launch()
        except StartFailed:
            self._enter(State.FAILED)
            raise
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self.spec.name}")
        return ready

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Take a ready child down with a signal; returns when it is gone. A restart follows if the spec allows it."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        await self._end(process, number, KILL_WAIT_S)
        while self.state is State.READY and self._process is process:
            await self._change()

    async def until(self, state: State, timeout_s: float) -> None:
        """Wait for a state. Raises Unavailable at the deadline, or as soon as it can't be reached any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.state is not state and self.state not in {State.FAILED, State.STOPPED}:
                    await self._change()
        if self.state is not state:
            raise Unavailable(
                f"{self.spec.name}: expected it {state.value} within {timeout_s:g} s, got {self.state.value}; "
                f"its log is {self.log}"
            )

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, ``grace_s`` seconds, SIGKILL; nothing the child started is left either."""
        if self._watcher is not None:
            self._watcher.cancel()  # ends a restart under way, with its process
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            await self._end(self._process, signal.SIGTERM, grace_s)
        if self.state is not State.FAILED:
            self._enter(State.STOPPED)

    def kill_now(self) -> None:
        """SIGKILL without waiting, for the way out of the parent process."""
        if self._watcher is not None:
            self._watcher.cancel()
        if self.pid is not None:
            descendants = _descendants(self.pid)
            _kill_group(self.pid)
            _kill(descendants)

    async def _change(self) -> None:
        """Wait for the next change of state."""
        self._changed.clear()
        await self._changed.wait()

    def _enter(self, state: State, detail: str = "") -> None:
        if state is not self.state or detail:
            self.state = state
            self._changed.set()
            self._observe(self.spec.name, state, detail)

    async def _launch(self) -> Ready:
        self._observe(self.spec.name, State.STARTING, "")
        with self.log.open("ab") as log:
            begin = log.tell()
            self._process = process = await asyncio.create_subprocess_exec(
                *self.spec.command(self.ready),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(self.spec.environment or {})},
            )
        try:
            async with asyncio.timeout(self.spec.ready_timeout_s):
                ready = await self._await_ready(process, begin)
        except BaseException as error:
            await self._end(process, signal.SIGKILL, KILL_WAIT_S)
            if isinstance(error, TimeoutError):
                got = f"no ready line within {self.spec.ready_timeout_s:g} s"
                raise self._failure(got, begin, None) from None
            raise
        if ready is None:
            raise self._failure(_describe_exit(process.returncode), begin, process.returncode)
        self.ready = ready
        self._enter(State.READY, ready.address)
        return ready

    async def _await_ready(self, process: asyncio.subprocess.Process, begin: int) -> Ready | None:
        """The ready line written to the log after ``begin``; None if the child ended without one."""
        position, rest = begin, b""
        while True:
            ended = process.returncode is not None
            chunk = _read(self.log, position)
            position += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if (ready := parse_ready(line.decode(errors="replace"))) is not None:
                    return ready
            if ended:
                return None
            await asyncio.sleep(POLL_S)

    def _failure(self, got: str, begin: int, returncode: int | None) -> StartFailed:
        lines = _read(self.log, max(begin, self.log.stat().st_size - TAIL_BYTES)).decode(errors="replace").splitlines()
        return StartFailed(
            self.spec.name, got=got, log=self.log, tail="\n".join(lines[-TAIL_LINES:]), returncode=returncode
        )

    async def _watch(self) -> None:
        """Restart the child whenever it dies, as often as the spec allows in a row."""
        row, detail = 0, ""
        while True:
            if self._process is not None and self.state is State.READY:
                since = time.monotonic()
                detail = _describe_exit(await self._process.wait())
                _kill_group(self._process.pid)  # what a crash left behind
                row = 0 if time.monotonic() - since >= self.spec.restart.healthy_s else row
            if row >= self.spec.restart.limit:
                self._enter(State.FAILED, detail)
                return
            self._enter(State.RESTARTING, detail)
            await asyncio.sleep(self.spec.restart.pause_s(row))
            row += 1
            self.restarts += 1
            try:
                await self._launch()
            except StartFailed as error:
                detail = str(error)

    async def _end(self, process: asyncio.subprocess.Process, number: signal.Signals, grace_s: float) -> None:
        """Signal the child, then kill it and all its descendants that outlive the grace."""
        descendants = _descendants(process.pid)
        deadline = time.monotonic() + grace_s
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        if not await _ended(process, grace_s):
            descendants |= _descendants(process.pid)
            _kill_group(process.pid)
            await _ended(process, KILL_WAIT_S)
        if descendants and number is not signal.SIGKILL:
            left_s = max(0.0, deadline - time.monotonic())
            await asyncio.to_thread(psutil.wait_procs, list(descendants), left_s)
        _kill_group(process.pid)
        _kill(descendants)


async def _ended(process: asyncio.subprocess.Process, timeout_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), timeout_s)
    return process.returncode is not None


def _read(path: Path, position: int) -> bytes:
    with path.open("rb") as file:
        file.seek(position)
        return file.read()


def _describe_exit(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"


def _descendants(pid: int) -> set[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return set(psutil.Process(pid).children(recursive=True))
    return set()


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
