"""The round streams of the routers, and which of them leads to whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from paceline.runtime import wire
from paceline.speculation.errors import InvalidRequest, Overloaded
from paceline.speculation.messages import StepReport, VerifyResult
from paceline.v1 import target_pb2 as pb

MAX_UNSENT = 1024  # messages; a router has at most one round per session under way, so it is not slow but stuck
RETRY_STUCK_S = 1.0


class RouterStream:
    """The answers' way back to one router."""

    def __init__(self, max_unsent: int = MAX_UNSENT) -> None:
        self.router_id = ""  # until the first message came
        self.failure: Exception | None = None  # why the stream was ended, if not in good order
        self._unsent: asyncio.Queue[pb.VerifyBatchResult | None] = asyncio.Queue(max_unsent + 1)
        self._max_unsent = max_unsent
        self._closed = False

    def name(self, router_id: str) -> None:
        """Raises InvalidRequest if the stream is another router's already, or the id is empty."""
        if not router_id or self.router_id not in ("", router_id):
            raise InvalidRequest("router_id", expected=self.router_id or "a router id", got=router_id)
        self.router_id = router_id

    def send(self, message: pb.VerifyBatchResult) -> None:
        """Queue a message. A router that doesn't read its answers loses its stream, and its sessions with it."""
        if self._closed:
            return
        if self._unsent.qsize() >= self._max_unsent:
            text = f"router {self.router_id} leaves {self._max_unsent} messages unread"
            self.failure = Overloaded(text, retry_after_s=RETRY_STUCK_S)
            while not self._unsent.empty():
                self._unsent.get_nowait()
            self.close()
            return
        self._unsent.put_nowait(message)

    def close(self) -> None:
        """End the stream after what is queued."""
        if not self._closed:
            self._closed = True
            self._unsent.put_nowait(None)  # the queue keeps a place for it

    async def __aiter__(self) -> AsyncIterator[pb.VerifyBatchResult]:
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

    def deliver(self, results: Mapping[str, Sequence[VerifyResult]], step: StepReport) -> None:
        """Send a step's answers, those of one router as one message; those of routers that are gone are dropped."""
        for router_id, answers in results.items():
            stream = self._latest(router_id)
            if stream is not None:
                message = pb.VerifyBatchResult(
                    results=[wire.to_verify_result(answer) for answer in answers], step=wire.to_step(step)
                )
                stream.send(message)

    def close(self) -> None:
        """End all streams after what is queued."""
        for stream in self._open:
            stream.close()

    def _latest(self, router_id: str) -> RouterStream | None:
        return next((stream for stream in reversed(self._open) if stream.router_id == router_id), None)
