"""What draft workers and target verifiers share: a service with round streams, runners and housekeeping; a process."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

from paceline.runtime import command, process
from paceline.runtime.command import Progress
from paceline.runtime.config import ConfigT, load
from paceline.runtime.server import Context, WorkerServer, until_stopped
from paceline.runtime.streams import RouterStream, Streams, reading
from paceline.speculation.errors import PacelineError
from paceline.v1 import common_pb2 as common

HOUSEKEEPING_S = 5.0


class Core(Protocol):
    """The sessions; touched by the event loop's thread only."""

    incarnation: str

    def release(self, session_id: str, lease_epoch: int) -> bool: ...
    def drop_router(self, router_id: str) -> int: ...
    def expire(self, now: float) -> int: ...
    def check_integrity(self) -> None: ...


class Runner(Protocol):
    """Runs rounds, in a thread of its own, until cancelled."""

    async def run(self) -> None: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...


class WorkerService(ABC):
    """Serves one core. The RPCs that are the same for all workers are here.

    ``failed`` is set when a runner or our own code cannot be relied on any more: the process should stop serving and
    exit.

    Args:
        name: for the log, which is the service's own.
        description: the answer to Describe.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        core: Core,
        description: Any,
        streams: Streams,
        runners: Sequence[Runner],
        *,
        log: logging.Logger,
        clock: Callable[[], float],
        housekeeping_s: float = HOUSEKEEPING_S,
    ) -> None:
        self.failed = asyncio.Event()
        self.incarnation = core.incarnation
        self._name, self._core, self._description, self._log = name, core, description, log
        self._streams, self._runners = streams, runners
        self._clock, self._housekeeping_s = clock, housekeeping_s
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the runners and the housekeeping."""
        work = [runner.run() for runner in self._runners]
        self._tasks = [asyncio.create_task(job) for job in (*work, self._housekeeping())]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """End the streams, so that routers look for another worker, and stop working."""
        self._streams.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in self._runners:
            runner.close()

    # Names and signatures of the RPCs are the stubs'.
    async def Describe(self, request: common.DescribeRequest, context: Context) -> Any:  # noqa: N802
        return self._description

    async def Release(self, request: common.ReleaseRequest, context: Context) -> common.ReleaseResponse:  # noqa: N802
        released = self._core.release(request.session_id, request.lease_epoch)
        self._changed()
        return common.ReleaseResponse(released=released)

    async def Rounds(self, request_iterator: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:  # noqa: N802
        stream = self._streams.add()
        try:
            async with reading(self._read(request_iterator, stream), stream, context):
                async for message in stream:
                    yield message
        finally:
            if self._streams.remove(stream):
                self._gone(stream.router_id, self._core.drop_router(stream.router_id))

    @abstractmethod
    def _take(self, message: Any, stream: RouterStream) -> None:
        """Submit the rounds of one message, all of them before the loop runs again; send what is answered at once."""

    @abstractmethod
    def _changed(self) -> None:
        """Sessions were opened or released."""

    @abstractmethod
    def _gone(self, router_id: str, dropped: int) -> None:
        """A router's last stream has ended, and so many of its sessions were released."""

    def _wake(self) -> None:
        for runner in self._runners:
            runner.wake()

    async def _read(self, requests: AsyncIterator[Any], stream: RouterStream) -> None:
        async for message in requests:
            stream.name(message.router_id)
            self._take(message, stream)
            self._wake()

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(self._housekeeping_s)
            expired = self._core.expire(self._clock())
            if expired:
                self._log.info("%d idle sessions released", expired)
            self._core.check_integrity()
            self._changed()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._log.error("%s failed: %r", self._name, task.exception(), exc_info=task.exception())
            self.failed.set()


def run(
    service: str,
    description: str,
    kind: type[ConfigT],
    prepare: Callable[[ConfigT, Progress], Coroutine[Any, Any, int]],
    arguments: Sequence[str] | None,
) -> int:
    """Run a worker until SIGTERM or SIGINT; returns the exit code.

    Args:
        prepare: loads what there is to load; what it returns serves.
    """
    options = command.begin(service, description, kind, arguments)
    progress = partial(command.tell, service)
    try:
        return asyncio.run(prepare(load(kind, options.config, options.overrides), progress))
    except (PacelineError, OSError) as error:
        progress(str(error))
        return command.EXIT_USAGE
    except KeyboardInterrupt:  # while the model was loading
        return command.EXIT_FAILED


async def serve_until_stopped(
    name: str, server: WorkerServer, service: WorkerService, model_id: str, shut_down: Callable[[], object]
) -> int:
    """Serve until stopped (0) or until the service has failed (1). Raises OSError: port taken.

    Args:
        name: of the service, for the ready line.
        shut_down: the last thing done, in a thread.
    """
    port = await server.start()
    service.start()
    stopped = asyncio.create_task(until_stopped())
    failed = asyncio.create_task(service.failed.wait())
    await asyncio.sleep(0)  # signals are handled before the parent hears of us
    process.announce(name, f"{server.host}:{port}", service.incarnation, model_id)
    await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
    for task in (stopped, failed):
        task.cancel()
    await server.set_serving(False)
    await service.stop()
    await server.stop()
    await asyncio.to_thread(shut_down)
    return command.EXIT_FAILED if service.failed.is_set() else 0
