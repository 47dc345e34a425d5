"""Delivery to one client, off the round path: rounds put events in and never wait for the client to take them."""

from __future__ import annotations

import asyncio
from collections import deque

from paceline.router.requests import Completed, Event
from paceline.speculation.errors import Overloaded

CAPACITY = 1024  # events, one a round


class Mailbox:
    """Events of one answer, in order, and its end."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._events: deque[Event] = deque()
        self._capacity = capacity
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    def put(self, event: Event) -> bool:
        """Add an event; False if the client has left too many unread, which ends the answer."""
        if self._error is not None:
            return True
        if len(self._events) >= self._capacity and not isinstance(event, Completed):
            self.fail(Overloaded(f"the client left {len(self._events)} events unread", retry_after_s=1.0))
            return False
        self._events.append(event)
        self._changed.set()
        return True

    def fail(self, error: BaseException) -> None:
        """The answer ends with an error, after the events already in."""
        if self._error is None:
            self._error = error
            self._changed.set()

    async def get(self) -> Event:
        """The next event. Raises the error the answer ended with."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        return self._events.popleft()
