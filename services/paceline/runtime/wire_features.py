"""Protobuf ↔ the nouns of ``speculation.features``."""

from __future__ import annotations

from paceline.runtime.wire_sampling import require
from paceline.speculation.features import FeatureChunk, FeatureWant, Feed
from paceline.v1 import draft_pb2 as draft
from paceline.v1 import target_pb2 as target


def to_feed(feed: Feed | None) -> target.FeatureFeed | None:
    if feed is None:
        return None
    return target.FeatureFeed(
        address=feed.address, incarnation=feed.incarnation, lease_epoch=feed.lease_epoch, projector=feed.projector
    )


def from_feed(message: target.FeatureFeed) -> Feed | None:
    """None if there is no address in it."""
    if not message.address:
        return None
    return Feed(message.address, message.incarnation, message.lease_epoch, message.projector)


def to_chunk(chunk: FeatureChunk) -> draft.FeatureChunk:
    return draft.FeatureChunk(
        session_id=chunk.session_id,
        lease_epoch=chunk.lease_epoch,
        incarnation=chunk.incarnation,
        projector=chunk.projector,
        position=chunk.position,
        count=chunk.count,
        data=chunk.data,
        dtype=chunk.dtype,
    )


def from_chunk(message: draft.FeatureChunk) -> FeatureChunk:
    """Raises InvalidRequest if rows and data contradict each other."""
    require(bool(message.session_id), "session_id", "a session id", "")
    expected = "data for a count above 0, and none for an offer"
    require(bool(message.count) == bool(message.data), "data", expected, len(message.data))
    return FeatureChunk(
        session_id=message.session_id,
        lease_epoch=message.lease_epoch,
        incarnation=message.incarnation,
        projector=message.projector,
        position=message.position,
        count=message.count,
        data=message.data,
        dtype=message.dtype,
    )


def to_want(want: FeatureWant) -> draft.FeatureWant:
    return draft.FeatureWant(
        session_id=want.session_id, lease_epoch=want.lease_epoch, position=want.position, refused=want.refused
    )


def from_want(message: draft.FeatureWant) -> FeatureWant:
    return FeatureWant(message.session_id, message.lease_epoch, message.position, message.refused)
