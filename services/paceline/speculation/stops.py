"""Stop strings over text that arrives in pieces.

The answer ends at the first character that completes a stop string; if it completes several at once, the longest one
counts. Text from the stop string's first character on is never given out. Both are functions of the whole text alone,
however it was cut into pieces: a character is scanned once, and what might still turn out to be the beginning of a stop
string is held back until it can't.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Finds the stop string that ends a text, and releases the text before it.

    Invariant: ``held`` is the longest suffix of the text so far that is a proper prefix of a stop string, so whatever
    was released can't be part of one.
    """

    __slots__ = ("_held", "_longest", "_stops", "stopped_by")

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), f"an empty stop string would end every answer at once: {stops!r}"
        # Longest first: of the stop strings that end at the same character, the first one found counts.
        self._stops = sorted(set(stops), key=lambda stop: (-len(stop), stop))
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.stopped_by: str | None = None

    @property
    def held(self) -> str:
        """Text that may be the beginning of a stop string."""
        return self._held

    def feed(self, text: str) -> str:
        """Append text; returns what is now known to precede any stop string. See ``stopped_by`` afterwards."""
        assert self.stopped_by is None, f"text after the stop string {self.stopped_by!r}"
        if not self._stops:
            return text
        text = self._held + text
        found = self._first_end(text)
        if found is not None:
            end, self.stopped_by = found
            self._held = ""
            return text[: end - len(self.stopped_by)]
        kept = self._undecided(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def flush(self) -> str:
        """The held text, for an answer that ended otherwise."""
        held, self._held = self._held, ""
        return held

    def _first_end(self, text: str) -> tuple[int, str] | None:
        ends = [(text.find(stop) + len(stop), stop) for stop in self._stops if stop in text]
        return min(ends, key=lambda found: found[0], default=None)

    def _undecided(self, text: str) -> int:
        """Length of the longest suffix that is a proper prefix of a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            suffix = text[-length:]
            if any(stop.startswith(suffix) for stop in self._stops):
                return length
        return 0
