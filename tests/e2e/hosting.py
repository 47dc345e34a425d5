"""A cluster that several tests share, whichever event loop each of them runs on, and what its routers tell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from paceline.runtime.child import Restart
from paceline.runtime.cluster import ClusterSpec, LocalCluster

START_S = 150.0
STOP_S = 60.0
BACK_S = 90.0
"""A killed worker loads its model again, perhaps on a machine that is busy with other tests."""
POLL_S = 0.05
TAIL_LINES = 12
KILLABLE = Restart(limit=50, backoff_s=0.1, backoff_max_s=0.5)

T = TypeVar("T")


class Hosted:
    """A LocalCluster on an event loop of its own, in a thread. Make it with ``hosting``."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.cluster = LocalCluster(spec)
        self.replicas = spec.routers
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster")
        self._thread.start()

    def start(self) -> None:
        """Start everything. Raises StartFailed."""
        self._await(self.cluster.start(), START_S)

    def stop(self) -> None:
        """Stop everything; the thread ends, too."""
        try:
            self._await(self.cluster.stop(), STOP_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            self._loop.close()

    @property
    def address(self) -> str:
        """The gRPC ingress."""
        return self.cluster.grpc_address

    @property
    def http(self) -> str:
        """The HTTP ingress."""
        return self.cluster.http_url

    async def kill(self, name: str) -> None:
        """SIGKILL a worker; returns when it is gone."""
        await self._awaited(self.cluster.kill(name))

    async def until_ready(self, name: str) -> None:
        """Wait for a killed worker to be back. Raises Unavailable."""
        await self._awaited(self.cluster.until_ready(name, BACK_S))

    def worker_at(self, address: str) -> str:
        """The name of the worker with an address."""
        return next(name for name, info in self.cluster.processes.items() if info.address == address)

    def tails(self) -> str:
        """The last lines of every process, for the message of a failure."""
        return tails(self.cluster.log_dir)

    async def statuses(self, wanted: int | None = None) -> dict[int, dict[str, Any]]:
        """What each replica tells, by its process id; waits until as many as wanted (by default all) answer."""
        found: dict[int, dict[str, Any]] = {}

        async def all_told() -> bool:
            for _ in range(4 * self.replicas):  # the kernel spreads connections by chance
                with contextlib.suppress(httpx.HTTPError):
                    status = await self.status()
                    if status["stats"]["connected"]:  # a new one has reached no worker yet, and counts nothing
                        found[status["pid"]] = status
            for pid in [pid for pid in found if not alive(pid)]:
                del found[pid]
            return len(found) >= (wanted or self.replicas)

        await until(all_told, BACK_S, "every replica to tell its status", self.tails)
        return found

    async def status(self) -> dict[str, Any]:
        """What one replica tells, on a connection of its own."""
        async with httpx.AsyncClient(base_url=self.http, timeout=10, verify=False) as client:
            told = (await client.get("/internal/status")).raise_for_status().json()
            assert isinstance(told, dict), told
            return told

    async def until_whole(self) -> None:
        """Wait until every worker is ready and every replica there is has all of them."""
        for name in self.cluster.processes:
            if name != "router":
                await self.until_ready(name)

        down: list[str] = []

        async def whole() -> bool:
            down[:] = [
                f"{worker['address']} is down for replica {pid}: {worker['error']}"
                for pid, status in (await self.statuses()).items()
                for worker in status["stats"]["workers"]
                if not worker["up"]
            ]
            return not down

        await until(whole, BACK_S, "every replica to have every worker", lambda: "\n".join([*down, self.tails()]))

    async def until_idle(self, timeout_s: float) -> float:
        """Wait until no replica holds an answer or a session; returns the seconds it took."""
        began = time.monotonic()

        async def idle() -> bool:
            told = [status["stats"] for status in (await self.statuses()).values()]
            held = [worker["sessions"] for stats in told for worker in stats["workers"]]
            return not any([stats["under_way"] + stats["waiting"] for stats in told] + held)

        await until(idle, timeout_s, "no session to be left", self.tails)
        return time.monotonic() - began

    def _await(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    async def _awaited(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


@contextmanager
def hosting(spec: ClusterSpec) -> Iterator[Hosted]:
    """A started cluster; nothing of it is left afterwards."""
    hosted = Hosted(spec)
    try:
        hosted.start()
        yield hosted
    finally:
        hosted.stop()


@asynccontextmanager
async def on_failure(tell: Callable[[], str]) -> AsyncIterator[None]:
    """Add what the processes said to whatever goes wrong within."""
    try:
        yield
    except Exception as error:
        error.add_note(tell())
        raise


async def until(
    holds: Callable[[], Awaitable[bool]], timeout_s: float, what: str, tell: Callable[[], str] = str
) -> None:
    """Wait until something holds; fails with what was waited for and what ``tell`` has to add."""
    deadline = time.monotonic() + timeout_s
    while not await holds():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}\n{tell()}"
        await asyncio.sleep(POLL_S)


def tails(folder: Path) -> str:
    """The last lines of every log in a folder."""
    parts = []
    for path in sorted(folder.glob("*.log")):
        lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        parts.append("\n".join([f"--- the end of {path.name}", *lines]))
    return "\n".join(parts) or f"--- no logs in {folder}"


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill_process(pid: int) -> None:
    """SIGKILL, as kill -9 does it."""
    os.kill(pid, signal.SIGKILL)
