"""Which context features go to which draft worker, and how far they have got. No I/O, no clock, no tensors.

    round (feed) ─▶ offer ─▶ want(position) ─▶ rows of each step as it ends ┐
                               ▲  │                                        ├─▶ chunks, as far as there is credit
                    lost, gaps ┘  └─▶ rows of the past, gathered ───────────┘

Nothing is queued but a chunk on its way: features stay on the engine's pages, and what could not be sent now is
gathered from there later. A session's features are sent in order; who has lost count says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from paceline.engine.interface import StepPlan
from paceline.speculation.features import FeatureChunk, FeatureWant, Feed

CHUNK_BYTES = 256 * 1024
MAX_WAITING_OFFERS = 1024  # of one draft worker


class Rows(NamedTuple):
    """Positions of a session whose features are to be read."""

    session_id: str
    feed: Feed
    start: int
    end: int


@dataclass(slots=True)
class _Way:
    """One session's features on their way. Invariant: nothing is sent while ``at`` is None."""

    feed: Feed
    at: int | None = None  # the next position to send; None until the draft worker has said
    busy: bool = False  # rows are being gathered for it
    refused: bool = False  # until the next round says that they are wanted
    later: bool = False  # nobody drafts from them after the round under way


@dataclass(slots=True)
class _Line:
    """The stream to one draft worker."""

    credit: int = 0  # bytes it is ready to take
    outbox: list[FeatureChunk] = field(default_factory=list)


class Feeds:
    """All features on their way from one target.

    Args:
        row_bytes: of one position's features, by the fingerprint of the projectors the engine has.
        dtype: of their numbers.
    """

    def __init__(self, row_bytes: Mapping[str, int], dtype: str = "bfloat16") -> None:
        self._row_bytes, self._dtype = dict(row_bytes), dtype
        self._ways: dict[str, _Way] = {}  # by session
        self._ready: dict[str, int] = {}  # positions whose features are final, of sessions that are held
        self._lines: dict[str, _Line] = {}  # by address, those that are up

    # Sessions ---------------------------------------------------------------------------------------------------

    def ready(self, session_id: str, length: int) -> None:
        """The features of a session's first ``length`` positions are final. Called for every session held."""
        if self._row_bytes:
            self._ready[session_id] = length

    def point(self, session_id: str, feed: Feed | None, *, later: bool = False) -> None:
        """A round said where the features of a session go; ``later``: not before a round says otherwise.

        A message for every token of a session that isn't drafted for would cost it more than the rare draft brings.
        """
        if feed is None or feed.projector not in self._row_bytes or session_id not in self._ready:
            self._ways.pop(session_id, None)
            return
        way = self._ways.get(session_id)
        if way is None or way.feed != feed:
            way = self._ways[session_id] = _Way(feed)
            self._offer(session_id, way)
        elif way.refused:
            way.refused = False
            self._offer(session_id, way)
        way.later = later

    def drop(self, session_id: str) -> None:
        """A session is no longer held, or begins anew."""
        self._ways.pop(session_id, None)
        self._ready.pop(session_id, None)

    # Streams ----------------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> frozenset[str]:
        """The draft workers that sessions' features go to."""
        return frozenset(way.feed.address for way in self._ways.values())

    def connected(self, address: str) -> None:
        """A stream to a draft worker was opened. What the last one carried is unknown, so everything is offered."""
        self._lines[address] = _Line()
        for session_id, way in self._to(address):
            way.at, way.refused = None, False
            self._offer(session_id, way)

    def lost(self, address: str) -> None:
        """The stream to a draft worker broke."""
        self._lines.pop(address, None)
        for _, way in self._to(address):
            way.at = None

    def credited(self, address: str, credit: int, wants: Sequence[FeatureWant]) -> None:
        """A draft worker said how much it is ready to take, and where to go on."""
        line = self._lines.get(address)
        if line is None:
            return
        line.credit += credit
        for want in wants:
            way = self._ways.get(want.session_id)
            if way is not None and (way.feed.address, way.feed.lease_epoch) == (address, want.lease_epoch):
                way.refused = want.refused
                way.at = None if want.refused else want.position

    def outgoing(self, address: str) -> list[FeatureChunk]:
        """What is to be written to a draft worker's stream now."""
        line = self._lines.get(address)
        if line is None:
            return []
        out, line.outbox = line.outbox, []
        return out

    # Features ---------------------------------------------------------------------------------------------------

    def of_step(self, plan: StepPlan) -> list[Rows]:
        """The rows of a step that are read as soon as it has run, to be handed to ``computed``."""
        rows = []
        for piece in plan.slices:
            way = self._ways.get(piece.session_id)
            if way is None or way.later or way.at != piece.start:
                continue
            if self._room(way) >= len(piece.tokens):
                rows.append(Rows(piece.session_id, way.feed, piece.start, piece.end))
        return rows

    def computed(self, rows: Rows, data: bytes) -> None:
        """Rows of a step that is over; those after what is final by now were rejected."""
        way = self._ways.get(rows.session_id)
        if way is None or way.feed is not rows.feed or way.busy or way.at != rows.start:
            return
        self._send(rows, way, data, min(rows.end, self._ready.get(rows.session_id, 0)))

    def due(self, address: str) -> Rows | None:
        """Rows of the past that are to be gathered for a draft worker, to be handed to ``gathered``; None if none are.

        Those who lack the fewest go first: they are being drafted for.
        """
        lacking = []
        for session_id, way in self._to(address):
            if way.at is not None and not (way.busy or way.later):
                count = min(self._ready.get(session_id, 0) - way.at, self._room(way))
                if count > 0:
                    lacking.append((self._ready[session_id] - way.at, session_id, way, count))
        if not lacking:
            return None
        _, session_id, way, count = min(lacking, key=lambda each: each[:2])
        assert way.at is not None
        way.busy = True
        return Rows(session_id, way.feed, way.at, way.at + count)

    def gathered(self, rows: Rows, data: bytes | None) -> None:
        """Rows asked for by ``due``; None if they could not be read."""
        way = self._ways.get(rows.session_id)
        if way is None or way.feed is not rows.feed:
            return
        way.busy = False
        if data is not None and way.at == rows.start:
            self._send(rows, way, data, rows.end)

    def check_integrity(self) -> None:
        """Assert the invariants."""
        for session_id, way in self._ways.items():
            assert session_id in self._ready, session_id
            assert way.at is None or not way.refused, session_id
        for address, line in self._lines.items():
            assert line.credit >= 0, (address, line.credit)

    def _send(self, rows: Rows, way: _Way, data: bytes, end: int) -> None:
        line = self._lines.get(way.feed.address)
        size = (end - rows.start) * self._row_bytes[way.feed.projector]
        if line is None or not 0 < size <= line.credit:
            return
        line.credit -= size
        way.at = end
        line.outbox.append(self._chunk(rows.session_id, way.feed, rows.start, end - rows.start, data[:size]))

    def _offer(self, session_id: str, way: _Way) -> None:
        line = self._lines.get(way.feed.address)
        if line is not None and len(line.outbox) < MAX_WAITING_OFFERS:
            line.outbox.append(self._chunk(session_id, way.feed))

    def _chunk(self, session_id: str, feed: Feed, position: int = 0, count: int = 0, data: bytes = b"") -> FeatureChunk:
        return FeatureChunk(
            session_id, feed.lease_epoch, feed.incarnation, feed.projector, position, count, data, self._dtype
        )

    def _room(self, way: _Way) -> int:
        """Rows that a chunk may have now."""
        line = self._lines.get(way.feed.address)
        credit = line.credit if line is not None else 0
        return min(credit, CHUNK_BYTES) // self._row_bytes[way.feed.projector]

    def _to(self, address: str) -> list[tuple[str, _Way]]:
        return [(session_id, way) for session_id, way in self._ways.items() if way.feed.address == address]
