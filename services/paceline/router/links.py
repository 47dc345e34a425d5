"""The connection to one worker process: one long-lived ``Rounds`` stream, made anew whenever it is lost.

    ┌▶ pause ──▶ connect, Describe, (a target's tokenizer) ──▶ up: Rounds stream ──▶ lost ─┐
    └──────────────────────────────────────────────────────────────────────────────────────┘

Everything put into the outbox in one turn of the event loop leaves as one message. Each connection has a router id
of its own, so that a worker that cleans up after the old stream does not touch sessions of the new one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import grpc

from paceline.router.counters import LinkCounters
from paceline.router.pairing import DraftInfo, TargetInfo
from paceline.runtime import wire
from paceline.runtime.server import CHANNEL_OPTIONS, MAX_MESSAGE_BYTES
from paceline.runtime.status import RETRY_AFTER_KEY, error_from
from paceline.speculation.errors import Overloaded, PacelineError, Unavailable
from paceline.speculation.leases import Side
from paceline.speculation.messages import DraftTask, SessionOpen, VerifyTask
from paceline.v1 import common_pb2 as common

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.05
STEADY_S = 5.0  # a connection that lasted this long was a good one: the next pause starts small again
DESCRIBE_TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 10.0
RELEASE_TIMEOUT_S = 5.0
MAX_OUTBOX = 8192  # tasks; more means that the worker stopped reading
MESSAGE_BYTES = MAX_MESSAGE_BYTES // 4
# InvalidStateError: grpc.aio's answer to a write after the call has ended, before the reader has heard of it.
_LOST = (asyncio.InvalidStateError, grpc.aio.BaseError, OSError, TimeoutError)

Info = TargetInfo | DraftInfo
Task = DraftTask | VerifyTask
TaskT = TypeVar("TaskT", bound=Task)
TaskT_contra = TypeVar("TaskT_contra", bound=Task, contravariant=True)


class Dialect(Protocol[TaskT_contra]):
    """How one kind of worker is spoken to."""

    @property
    def side(self) -> Side: ...

    def stub(self, channel: grpc.aio.Channel) -> Any: ...

    async def meet(self, stub: Any, timeout_s: float) -> Info:
        """Describe, and whatever else must be known before the worker is of use. Raises PacelineError."""
        ...

    def encode(self, router_id: str, tasks: Sequence[TaskT_contra]) -> Any: ...

    def receive(self, address: str, message: Any, start: float) -> int:
        """Handle a message of results; how many sessions were in it."""
        ...


class Listener(Protocol):
    """Who is told what becomes of links."""

    def up(self, side: Side, address: str, info: Info, router_id: str) -> None: ...

    def down(self, side: Side, address: str) -> None: ...

    def spent(self, tasks: Sequence[Task], start: float) -> None:
        """Time went into sending these, since ``start`` by ``perf``."""
        ...


class Link(Generic[TaskT]):
    """Keeps one worker connected from ``start`` to ``close``.

    Args:
        retry_max_s: longest pause between attempts.
        rng: spreads the attempts of many routers.
        perf: clock of the router's own time, seconds.
    """

    def __init__(
        self,
        address: str,
        dialect: Dialect[TaskT],
        listener: Listener,
        *,
        router_id: str,
        retry_max_s: float,
        rng: random.Random,
        perf: Callable[[], float],
    ) -> None:
        self.address = address
        self.counters = LinkCounters()
        self.last_error = "not reached yet"
        self._dialect = dialect
        self._listener = listener
        self._base_id = router_id
        self._retry_max_s = retry_max_s
        self._rng = rng
        self._perf = perf
        self._router_id = router_id
        self._stub: Any = None
        self._outbox: list[TaskT] = []
        self._wake = asyncio.Event()
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_connected())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def put(self, tasks: Sequence[TaskT]) -> None:
        """Send tasks with the next message. Dropped while the link is down: their sessions are moved anyway."""
        if self._stub is None:
            return
        if len(self._outbox) + len(tasks) > MAX_OUTBOX:
            self.reset()
            return
        self._outbox.extend(tasks)
        self._wake.set()

    def reset(self) -> None:
        """Give the present connection up and make a new one."""
        self._lost.set()

    async def open(self, opening: SessionOpen, timeout_s: float) -> str:
        """Open a session; returns the worker's incarnation. Raises PacelineError."""
        response = await self._call("Open", wire.to_open(opening), timeout_s)
        return str(response.incarnation)

    async def release(self, session_id: str, lease_epoch: int) -> None:
        """Release a session. Raises PacelineError."""
        request = common.ReleaseRequest(session_id=session_id, lease_epoch=lease_epoch)
        await self._call("Release", request, RELEASE_TIMEOUT_S)

    async def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        if self._stub is None:
            raise Unavailable(f"{self.address} is not connected: {self.last_error}")
        try:
            return await getattr(self._stub, method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error

    async def _keep_connected(self) -> None:
        pause = FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                async with grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS) as channel:
                    await self._serve(channel)
            except grpc.aio.AioRpcError as error:
                self.last_error = f"{error.code().name}: {error.details()}"
            except Exception as error:  # whatever it was, a link that nobody keeps up would stay down for good
                self.last_error = str(error) or repr(error)
                if not isinstance(error, (PacelineError, *_LOST)):
                    log.exception("%s worker %s: a bug", self._dialect.side.value, self.address)
            log.info("%s worker %s: %s", self._dialect.side.value, self.address, self.last_error)
            pause = FIRST_PAUSE_S if loop.time() - began >= STEADY_S else min(self._retry_max_s, pause * 2)
            await asyncio.sleep(pause * (0.5 + self._rng.random() / 2))

    async def _serve(self, channel: grpc.aio.Channel) -> None:
        """Connect and serve until the connection is lost. Raises whatever lost it."""
        stub = self._dialect.stub(channel)
        info = await self._dialect.meet(stub, DESCRIBE_TIMEOUT_S)
        self.counters.connects += 1
        self._router_id = f"{self._base_id}.{self.counters.connects}"
        self._lost.clear()
        call = stub.Rounds()
        self._stub = stub
        self._listener.up(self._dialect.side, self.address, info, self._router_id)
        spawn = asyncio.get_running_loop().create_task
        tasks = [spawn(self._write(call)), spawn(self._read(call)), spawn(self._lost.wait())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self.last_error = "given up"
            for task in done:
                if not task.cancelled():  # grpc cancels a reader when the writer gave the call up
                    task.result()
        finally:
            self._stub = None
            self._outbox.clear()
            self.counters.losses += 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            call.cancel()
            self._listener.down(self._dialect.side, self.address)

    async def _write(self, call: Any) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            tasks, self._outbox = self._outbox, []
            start = self._perf()
            messages = list(self._messages(tasks))
            self._listener.spent(tasks, start)
            for message in messages:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await call.write(message)

    def _messages(self, tasks: Sequence[TaskT]) -> Iterator[Any]:
        """One message, or several where it would be too long."""
        if not tasks:
            return
        message = self._dialect.encode(self._router_id, tasks)
        size = message.ByteSize()
        if size > MESSAGE_BYTES and len(tasks) > 1:
            half = len(tasks) // 2
            yield from self._messages(tasks[:half])
            yield from self._messages(tasks[half:])
            return
        self.counters.messages_sent += 1
        self.counters.sessions_sent += len(tasks)
        self.counters.bytes_sent += size
        yield message

    async def _read(self, call: Any) -> None:
        while True:
            message = await call.read()
            if message is grpc.aio.EOF:
                raise Unavailable("the worker ended the stream")
            start = self._perf()
            self.counters.messages_received += 1
            self.counters.bytes_received += message.ByteSize()
            self.counters.sessions_received += self._dialect.receive(self.address, message, start)


def error_of(error: grpc.aio.AioRpcError) -> PacelineError:
    """What a worker meant by an RPC's status."""
    meant = error_from(error.code(), error.details() or "")
    if isinstance(meant, Overloaded):
        for key, value in error.trailing_metadata() or ():
            if key == RETRY_AFTER_KEY and str(value).isdigit():
                meant.retry_after_s = int(value) / 1000
    return meant
