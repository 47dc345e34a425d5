"""Which of several servers to call: the one that worked last, until it fails."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Targets(Generic[T]):
    """Servers in order of preference; safe to share between threads.

    Calls stay with one server while it works, since that is where their prompts are cached.
    """

    def __init__(self, items: Sequence[T]) -> None:
        assert items
        self.items = tuple(items)
        self.closed = False
        self._lock = threading.Lock()
        self._index = 0

    def current(self) -> tuple[int, T]:
        """The server to call, and its index for ``failed``."""
        with self._lock:
            return self._index, self.items[self._index]

    def failed(self, index: int) -> None:
        """Move on, unless another call already did."""
        with self._lock:
            if self._index == index:
                self._index = (index + 1) % len(self.items)
