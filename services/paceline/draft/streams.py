"""The round streams of the routers, and which of them leads to whom."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence

from paceline.draft.lane import Answer
from paceline.runtime import wire
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import DraftResult
from paceline.v1 import draft_pb2 as pb

log = logging.getLogger(__name__)

MAX_UNSENT = 1024  # messages


class RouterStream:
    """The answers' way back to one router."""

    def __init__(self, max_unsent: int = MAX_UNSENT) -> None:
        self.router_id = ""  # until the first message came
        self._unsent: asyncio.Queue[pb.DraftBatchResult | None] = asyncio.Queue(max_unsent + 1)
        self._max_unsent = max_unsent
        self._closed = False

    def name(self, router_id: str) -> None:
        """Raises InvalidRequest if the stream is another router's already, or the id is empty."""
        if not router_id or self.router_id not in ("", router_id):
            raise InvalidRequest("router_id", expected=self.router_id or "a router id", got=router_id)
        self.router_id = router_id

    def send(self, results: Sequence[DraftResult]) -> None:
        """Queue answers as one message. A router that doesn't read loses them, as it would lose late ones."""
        if not results or self._closed:
            return
        if self._unsent.qsize() >= self._max_unsent:
            log.warning("router %s does not read its answers; %d dropped", self.router_id, len(results))
            return
        self._unsent.put_nowait(pb.DraftBatchResult(results=[wire.to_draft_result(result) for result in results]))

    def close(self) -> None:
        """End the stream after what is queued."""
        if not self._closed:
            self._closed = True
            self._unsent.put_nowait(None)  # the queue keeps a place for it

    async def __aiter__(self) -> AsyncIterator[pb.DraftBatchResult]:
        while (message := await self._unsent.get()) is not None:
            yield message


class Streams:
    """All open streams."""

    def __init__(self) -> None:
        self._open: list[RouterStream] = []

    def add(self) -> RouterStream:
        """Open a stream."""
        stream = RouterStream()
        self._open.append(stream)
        return stream

    def remove(self, stream: RouterStream) -> bool:
        """Forget a stream; whether its router has no other one left.

        A router that reconnects may open its next stream before the end of the last one is noticed.
        """
        self._open.remove(stream)
        return bool(stream.router_id) and self._latest(stream.router_id) is None

    def deliver(self, answers: Iterable[Answer]) -> None:
        """Send answers, those of one router as one message; those of routers that are gone are dropped."""
        by_router: dict[str, list[DraftResult]] = {}
        for router_id, result in answers:
            by_router.setdefault(router_id, []).append(result)
        for router_id, results in by_router.items():
            stream = self._latest(router_id)
            if stream is not None:
                stream.send(results)

    def close(self) -> None:
        """End all streams after what is queued."""
        for stream in self._open:
            stream.close()

    def _latest(self, router_id: str) -> RouterStream | None:
        return next((stream for stream in reversed(self._open) if stream.router_id == router_id), None)
