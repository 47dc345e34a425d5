"""Calls that read and answer at the same time, and the round streams of the routers."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol

from paceline.runtime.server import Context, told
from paceline.speculation.errors import InvalidRequest

MAX_UNSENT = 1024  # messages; a router has at most one round per session under way, so it is not slow but stuck


class Answers(Protocol):
    """What goes back to a caller; it ends some time after it was closed."""

    def close(self) -> None: ...


@asynccontextmanager
async def reading(requests: Coroutine[Any, Any, None], answers: Answers, context: Context) -> AsyncIterator[None]:
    """A call's requests are read beside its answers, which the body sends until they end.

    The answers are closed when there is nothing more to read, and nothing is read once the body has ended. What goes
    wrong in either is told to the caller.

    Args:
        requests: reads and submits them all.
    """
    reader = asyncio.create_task(requests)
    reader.add_done_callback(lambda _: answers.close())
    try:
        async with told(context):
            yield
            if reader.done() and not reader.cancelled():
                reader.result()
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


class RouterStream(ABC):
    """The answers' way back to one router, as messages."""

    def __init__(self, max_unsent: int = MAX_UNSENT) -> None:
        self.router_id = ""  # until the first message came
        self.failure: Exception | None = None  # why the stream was ended, if not in good order
        self._unsent: asyncio.Queue[Any] = asyncio.Queue(max_unsent + 1)
        self._max_unsent = max_unsent
        self._closed = False

    def name(self, router_id: str) -> None:
        """Raises InvalidRequest if the stream is another router's already, or the id is empty."""
        if not router_id or self.router_id not in ("", router_id):
            raise InvalidRequest("router_id", expected=self.router_id or "a router id", got=router_id)
        self.router_id = router_id

    def send(self, message: Any) -> None:
        """Queue a message; ``_overflow`` is what becomes of a router that doesn't read its answers."""
        if self._closed:
            return
        if self._unsent.qsize() >= self._max_unsent:
            self._overflow(message)
            return
        self._unsent.put_nowait(message)

    def close(self) -> None:
        """End the stream after what is queued."""
        if not self._closed:
            self._closed = True
            self._unsent.put_nowait(None)  # the queue keeps a place for it

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Until closed, then raises ``failure`` if there is one."""
        while (message := await self._unsent.get()) is not None:
            yield message
        if self.failure is not None:
            raise self.failure

    @abstractmethod
    def _overflow(self, message: Any) -> None:
        """There is no room for this message."""


class Streams:
    """All open streams."""

    def __init__(self, make: Callable[[], RouterStream]) -> None:
        self._make = make
        self._open: list[RouterStream] = []

    def add(self) -> RouterStream:
        """Open a stream."""
        stream = self._make()
        self._open.append(stream)
        return stream

    def remove(self, stream: RouterStream) -> bool:
        """Forget a stream; whether its router has no other one left.

        A router that reconnects may open its next stream before the end of the last one is noticed.
        """
        self._open.remove(stream)
        return bool(stream.router_id) and self.latest(stream.router_id) is None

    def close(self) -> None:
        """End all streams after what is queued."""
        for stream in self._open:
            stream.close()

    def latest(self, router_id: str) -> RouterStream | None:
        """The stream that leads to a router; None if it is gone."""
        return next((stream for stream in reversed(self._open) if stream.router_id == router_id), None)
