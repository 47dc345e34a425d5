"""The drafter seam: K tokens for each of these sessions.

A drafter holds advisory state only: losing all of it costs time, never a token. Its methods are called from one
thread at a time and may block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from paceline.speculation.digest import PrefixDigest
from paceline.speculation.messages import Proposal, SessionOpen
from paceline.speculation.params import SamplingParams


@dataclass(slots=True, eq=False)
class DraftSession:
    """A session as a draft worker knows it: an advisory copy of what the target committed.

    ``tokens`` only ever grows, so a drafter may read ``tokens[:base_len]`` while more are appended in another thread.
    Invariants: 0 < prompt_len <= len(tokens); digest is that of tokens.
    """

    session_id: str
    lease_epoch: int
    drafter: str
    tokens: list[int]  # prompt and committed
    digest: PrefixDigest
    prompt_len: int
    sampling: SamplingParams
    choice: int

    @classmethod
    def opened(cls, opening: SessionOpen, drafter: str) -> DraftSession:
        """A fresh session for the drafter of that name."""
        return cls(
            session_id=opening.session_id,
            lease_epoch=opening.lease_epoch,
            drafter=drafter,
            tokens=list(opening.tokens),
            digest=PrefixDigest(opening.tokens),
            prompt_len=opening.prompt_len,
            sampling=opening.sampling,
            choice=opening.choice,
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """At most ``max_tokens`` draft tokens after the first ``base_len`` tokens of an opened session."""

    session_id: str
    base_len: int
    max_tokens: int  # K >= 1
    budget_s: float = math.inf  # the answer is of no use after this long from the start of the batch
    token_s: float = 0.0  # time in which a token is committed; 0 = not known
    row_s: float = 0.0  # what each token that is verified adds to a step

    def __post_init__(self) -> None:
        assert self.base_len > 0, self
        assert self.max_tokens > 0, self


@dataclass(frozen=True, slots=True)
class Features:
    """Context features of consecutive committed positions of an opened session, as its target sent them."""

    session_id: str
    start: int  # position of the first
    count: int
    data: bytes  # rows back to back, little-endian
    dtype: str = "bfloat16"  # of a number: one of FEATURE_BYTES

    def __post_init__(self) -> None:
        assert self.start >= 0, self.start
        assert self.count > 0, self.count


FEATURE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}  # by dtype, of one number


class Drafter(Protocol):
    """Anything that proposes tokens."""

    @property
    def name(self) -> str:
        """What sessions ask for it by."""
        ...

    @property
    def model_id(self) -> str:
        """The model its draft tokens are attributed to."""
        ...

    @property
    def needs_features(self) -> bool:
        """Whether it runs on the target's hidden states beside token ids."""
        ...

    def open(self, session: DraftSession) -> None:
        """Take a session on. An open one of the same id is replaced; what was computed for it may be reused."""
        ...

    def close(self, session_id: str) -> None:
        """Forget a session. Unknown ones are ignored."""
        ...

    def propose(self, asks: Sequence[Ask]) -> list[Proposal]:
        """One proposal per ask, in order; possibly empty. Asks name opened sessions, each at most once. Blocks."""
        ...


@runtime_checkable
class SharedDrafter(Drafter, Protocol):
    """A drafter that also serves sessions of other names: a DraftSession says by which it was asked for."""

    @property
    def others(self) -> dict[str, str]:
        """Those other names, and the model that drafts under each."""
        ...


@runtime_checkable
class FeatureDrafter(Drafter, Protocol):
    """A drafter that reads the target's hidden states, projected (``needs_features``).

    An ask for a base_len is drafted on the features of positions 0 … base_len - 2; the anchor after them has none yet.
    """

    @property
    def projector(self) -> str:
        """The fingerprint of the projector its features must come from."""
        ...

    @property
    def feature_width(self) -> int:
        """Numbers per position."""
        ...

    def feed(self, features: Sequence[Features]) -> None:
        """Take features in; they go on where a session's ended, or begin it. Others are ignored. Blocks."""
        ...

    def forgotten(self) -> frozenset[str]:
        """Sessions whose features it had to forget, for want of room, since this was last called."""
        ...
