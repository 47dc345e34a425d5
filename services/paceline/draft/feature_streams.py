"""The feature streams of the targets, as a draft worker answers on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count

from paceline.draft.intake import WINDOW_BYTES, Intake, Reply
from paceline.runtime.wire_features import to_want
from paceline.speculation.errors import InvalidRequest
from paceline.v1 import draft_pb2 as pb


class FeatureStream:
    """One target's stream. What is to be told on it waits in the intake, so that there is at most one message here."""

    def __init__(self, name: str, intake: Intake) -> None:
        self.name = name
        self._intake = intake
        self._ready = asyncio.Event()
        self._closed = False
        self._credit = 0  # bytes granted and not sent yet

    def received(self, size: int) -> None:
        """Raises InvalidRequest if the target sends more than it was granted."""
        if size > self._credit:
            expected = f"at most {self._credit} bytes, what was granted (window: {WINDOW_BYTES})"
            raise InvalidRequest("data", expected=expected, got=size)
        self._credit -= size

    def wake(self) -> None:
        """There may be something to tell."""
        self._ready.set()

    def close(self) -> None:
        """End the stream."""
        self._closed = True
        self._ready.set()

    async def __aiter__(self) -> AsyncIterator[pb.FeatureCredit]:
        while not self._closed:
            self._ready.clear()
            reply = self._intake.reply(self.name)
            if reply is None:
                await self._ready.wait()
            else:
                self._credit += reply.credit
                yield _message(reply)


class FeatureStreams:
    """All open ones."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._open: dict[str, FeatureStream] = {}
        self._names = count(1)

    def open(self) -> FeatureStream:
        """A target opened a stream."""
        name = str(next(self._names))
        self._intake.opened(name)
        stream = self._open[name] = FeatureStream(name, self._intake)
        return stream

    def remove(self, stream: FeatureStream) -> None:
        """A stream is over."""
        del self._open[stream.name]
        self._intake.closed(stream.name)

    def wake(self) -> None:
        """There may be something to tell on any of them."""
        for stream in self._open.values():
            stream.wake()

    def close(self) -> None:
        """End all of them."""
        for stream in self._open.values():
            stream.close()


def _message(reply: Reply) -> pb.FeatureCredit:
    return pb.FeatureCredit(bytes=reply.credit, wants=[to_want(want) for want in reply.wants])
