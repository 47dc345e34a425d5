"""Virtual time: a heap of things to do, one seeded source of chance, and a transcript of what happened."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable


class World:
    """Everything happens in one thread, in the order of virtual time; ties in the order they were planned.

    Invariant: two worlds of the same seed and scenario write the same transcript.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.transcript: list[str] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Do something ``delay_s`` virtual seconds from now."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + max(0.0, delay_s), self._count, act))

    def note(self, line: str) -> None:
        """Write a line of the transcript."""
        self.transcript.append(f"{self.now:10.6f} {line}")

    def run(self, done: Callable[[], bool], limit_s: float) -> None:
        """Until ``done``, or nothing is left to do. Raises AssertionError past the limit: something hangs."""
        while self._heap and not done():
            at, _, act = heapq.heappop(self._heap)
            assert at <= limit_s, f"still busy after {limit_s} virtual seconds"
            self.now = at
            act()
