"""Context features as they come in from targets: which are taken, what is asked for, what has been used up.

A session's features are taken in order of position. An offer, or a chunk after a gap, is answered by saying where to go
on. What a drafter had to forget is asked for again when the session is next drafted for, and each time less readily, so
that sessions that don't fit in beside each other don't drive each other out round after round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from paceline.draft.sessions import MICRO, HeldSession, Waiting
from paceline.drafters.interface import FEATURE_BYTES, FeatureDrafter, Features
from paceline.speculation.features import FeatureChunk, FeatureWant

WINDOW_BYTES = 8 * 1024 * 1024  # of one stream, taken and not used up
WAIT_S = 0.01  # an ask waits for its last features at most so long: they left the target before the ask did
WAIT_ROWS = 128  # and only if no more than these are missing: others come later than that
MAX_DOUBLINGS = 10


class Taken(NamedTuple):
    """Features for a drafter, and the stream they came from."""

    features: Features
    source: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What to tell on one stream."""

    credit: int
    wants: tuple[FeatureWant, ...]


class Intake:
    """The features of one draft worker's sessions. Streams go by names of the caller's."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._credits: dict[str, int] = {}  # by stream, used up and not told yet
        self._wants: dict[str, list[FeatureWant]] = {}

    def opened(self, source: str) -> None:
        """A stream begins."""
        self._credits[source], self._wants[source] = WINDOW_BYTES, []

    def closed(self, source: str) -> None:
        """A stream is over."""
        self._credits.pop(source, None)
        self._wants.pop(source, None)

    def reply(self, source: str) -> Reply | None:
        """What is to be told on a stream now; None if nothing is."""
        if not self._credits.get(source) and not self._wants.get(source):
            return None
        told = Reply(self._credits[source], tuple(self._wants[source]))
        self._credits[source], self._wants[source] = 0, []
        return told

    def take(
        self, source: str, chunk: FeatureChunk, held: HeldSession | None, drafter: FeatureDrafter | None
    ) -> Taken | None:
        """Features for a session's drafter, if the chunk has some.

        Args:
            held: the session, if it is.
            drafter: its, if that reads features.
        """
        if held is None or drafter is None or not self._fits(chunk, held, drafter):
            self._want(source, FeatureWant(chunk.session_id, chunk.lease_epoch, refused=True))
            self._spent(source, len(chunk.data))
            return None
        fed = held.fed
        fed.source = source
        if chunk.position > fed.count or not chunk.count:
            if fed.told != fed.count or not chunk.count:
                self.ask(held)
            self._spent(source, len(chunk.data))
            return None
        skipped = fed.count - chunk.position
        if skipped >= chunk.count:
            self._spent(source, len(chunk.data))
            return None
        row_bytes = len(chunk.data) // chunk.count
        self._spent(source, skipped * row_bytes)
        data = chunk.data[skipped * row_bytes :]
        start, fed.count = fed.count, chunk.end
        if fed.count >= held.known_len - 1:
            fed.patient = True
        return Taken(Features(chunk.session_id, start, chunk.count - skipped, data, chunk.dtype), source)

    def used(self, taken: Iterable[Taken]) -> None:
        """A drafter has taken these over, or nobody needs them any more."""
        for each in taken:
            self._spent(each.source, len(each.features.data))

    def ask(self, held: HeldSession) -> None:
        """Say where to go on with a session's features, unless they were forgotten lately."""
        fed = held.fed
        if fed.silent:
            return
        fed.told = fed.count
        self._want(fed.source, FeatureWant(held.session.session_id, held.session.lease_epoch, fed.count))

    def asked_for(self, held: HeldSession) -> None:
        """The session is drafted for: what was forgotten is asked for again, if it is time."""
        fed = held.fed
        if fed.silent:
            fed.silent -= 1
            if not fed.silent:
                self.ask(held)

    def forgot(self, held: HeldSession) -> None:
        """Its drafter holds none of a session's features any more."""
        fed = held.fed
        fed.count = fed.told = 0
        fed.silent = 1 << min(fed.forgotten, MAX_DOUBLINGS)
        fed.forgotten += 1

    def _fits(self, chunk: FeatureChunk, held: HeldSession, drafter: FeatureDrafter) -> bool:
        session = held.session
        row_bytes = drafter.feature_width * FEATURE_BYTES.get(chunk.dtype, 0)
        return (
            (chunk.incarnation, chunk.lease_epoch, chunk.projector)
            == (self._incarnation, session.lease_epoch, drafter.projector)
            and len(chunk.data) == chunk.count * row_bytes
            and row_bytes > 0
            and chunk.end < session.prompt_len + session.sampling.max_tokens
        )

    def _want(self, source: str, want: FeatureWant) -> None:
        wants = self._wants.get(source)
        if wants is not None:
            wants.append(want)

    def _spent(self, source: str, size: int) -> None:
        if source in self._credits:
            self._credits[source] += size


def hold_until(waiting: Waiting) -> float:
    """Until when an ask waits for features on their way; the past if it doesn't."""
    missing = waiting.task.fence.base_len - 1 - waiting.held.fed.count
    if not waiting.held.fed.patient or not 0 < missing <= WAIT_ROWS:
        return -math.inf
    share = waiting.task.deadline_us / MICRO / 4 if waiting.task.deadline_us else WAIT_S
    return waiting.arrived_s + min(WAIT_S, share)
