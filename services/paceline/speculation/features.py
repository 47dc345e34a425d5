"""The nouns of the feature stream, verifier ──FeatureChunk──▶ draft worker ──FeatureWant──▶ verifier.

A session's context features are sent in order of position. Where to begin, and where to go on after anything was lost,
the draft worker says: a verifier that doesn't know makes an offer, a chunk without rows. Lost and late features cost
drafts, never a token.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Feed:
    """Where a session's features go: its lease on a draft worker, and what that worker's drafter reads."""

    address: str
    incarnation: str
    lease_epoch: int
    projector: str  # fingerprint


@dataclass(frozen=True, slots=True)
class FeatureChunk:
    """The features of positions position … position + count - 1."""

    session_id: str
    lease_epoch: int  # of the draft worker's lease
    incarnation: str  # of the draft worker
    projector: str
    position: int = 0
    count: int = 0  # 0 is an offer
    data: bytes = b""  # rows back to back, little-endian
    dtype: str = ""  # of a number

    def __post_init__(self) -> None:
        assert bool(self.count) == bool(self.data), (self.count, len(self.data))
        assert self.position >= 0, self.position

    @property
    def end(self) -> int:
        return self.position + self.count


@dataclass(frozen=True, slots=True)
class FeatureWant:
    """Go on with a session at this position; or don't, if it is refused."""

    session_id: str
    lease_epoch: int
    position: int = 0
    refused: bool = False
