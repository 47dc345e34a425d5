"""Admission: so many answers under way, so many waiting, and a refusal at once beyond that."""

from __future__ import annotations

import asyncio
from collections import deque

from paceline.speculation.cost import Ema
from paceline.speculation.errors import DeadlineExceeded, Overloaded

RETRY_MIN_S = 0.1
RETRY_MAX_S = 60.0


class Admission:
    """Lets requests in, in order.

    Args:
        max_under_way: answers at once.
        max_waiting: requests waiting for a place.
    """

    def __init__(self, max_under_way: int, max_waiting: int) -> None:
        self.under_way = 0
        self._max_under_way = max_under_way
        self._max_waiting = max_waiting
        self._queue: deque[asyncio.Future[None]] = deque()
        self._answer_s = Ema()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def enter(self, timeout_s: float) -> None:
        """Take a place; pair it with ``leave``.

        Raises:
            Overloaded: too many wait already.
            DeadlineExceeded: no place became free in time.
        """
        if self.under_way < self._max_under_way and not self._queue:
            self.under_way += 1
            return
        if len(self._queue) >= self._max_waiting:
            raise Overloaded(
                f"{self.under_way} answers are under way and {len(self._queue)} requests wait",
                retry_after_s=self._retry_after_s(),
            )
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            async with asyncio.timeout(timeout_s):
                await place
        except (TimeoutError, asyncio.CancelledError) as error:
            if place.done() and not place.cancelled():
                self._pass_on()  # the place came in the same moment
            else:
                self._queue.remove(place)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the deadline passed while the request waited to be admitted") from error
            raise

    def leave(self, answer_s: float) -> None:
        """Give the place back; the answer took so many seconds."""
        self._answer_s.add(answer_s)
        self._pass_on()

    def _pass_on(self) -> None:
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.under_way -= 1

    def _retry_after_s(self) -> float:
        """When about half of those waiting will have been let in."""
        share = (len(self._queue) / 2 + 1) / self._max_under_way
        return round(min(RETRY_MAX_S, max(RETRY_MIN_S, self._answer_s.get(1.0) * share)), 3)
