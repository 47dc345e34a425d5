"""The seam under a served drafter: sessions' contexts, and drafts that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Piece:
    """Context features of consecutive positions of a session, the next ones after those it has."""

    session_id: str
    start: int
    features: Tensor  # [N, H], projected
    tokens: Sequence[int] = ()  # the session's, as many as are known; only EAGLE-3 reads them


@dataclass(frozen=True, slots=True)
class BlockAsk:
    """Drafts of one session: the anchor's token, and its position, which is how long the context before it is."""

    session_id: str
    anchor: int
    position: int
    tokens: Sequence[int] = ()  # the session's, up to the anchor at least; only EAGLE-3 reads them


class Drafting(Protocol):
    """Drafts of several sessions under way, left to right."""

    @property
    def steps(self) -> int:
        """K: how many tokens can be drafted."""
        ...

    def logits(self, step: int, previous: Tensor, active: Sequence[int]) -> Tensor:
        """Scores of the next draft over the draft vocabulary, [A, Vd].

        Args:
            step: of 0 … K - 1, each once and in turn.
            previous: [A], target tokens, those before the next draft.
            active: places among the sessions, ascending; who is not among them is not in a later step either.
        """
        ...

    def confidence(self, before: Tensor) -> Tensor | None:
        """Estimated conditional acceptance of each draft: [steps, S] target tokens before them → float32 [steps, S]."""
        ...


class Backend(Protocol):
    """A drafter's network as it runs: keys and values of contexts, the pass over blocks, and the heads."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def least(self) -> int:
        """Context positions without which nothing can be drafted."""
        ...

    def reserve(self, session_id: str, positions: int) -> bool:
        """Room for a session of so many positions, the block's own included; False if there is none now."""
        ...

    def free(self, session_id: str) -> None:
        """Forget a session's context. Unknown ones are ignored."""
        ...

    def append(self, pieces: Sequence[Piece]) -> None:
        """Take context features in. Sessions are reserved as far as that, and named once each."""
        ...

    def begin(self, asks: Sequence[BlockAsk]) -> Drafting:
        """Draft. Sessions are reserved for a block after their position, and have ``least`` context positions."""
        ...


class BlockBackend(Backend, Protocol):
    """A backend whose drafts are rows of one pass."""

    def block(self, asks: Sequence[BlockAsk]) -> Tensor:
        """One pass: [K, S, H], the rows that predict, by step and then by session. Sessions are reserved for a block
        after their position."""
        ...

    def base(self, rows: Tensor) -> Tensor:
        """The head's logits over the draft vocabulary, before the Markov head's: [..., H] → [..., Vd]."""
        ...

    def biased(self, logits: Tensor, previous: Tensor) -> Tensor:
        """With what the Markov head says after these target tokens: [S, Vd] and [S] → [S, Vd]."""
        ...

    def confidence(self, rows: Tensor, previous: Tensor) -> Tensor | None:
        """Estimated conditional acceptance of each draft: [N, H] after target tokens [N] → float32 [N]."""
        ...


class Block:
    """A block of each session as Drafting."""

    def __init__(self, backend: BlockBackend, asks: Sequence[BlockAsk]) -> None:
        self._backend = backend
        self._rows = backend.block(asks)
        self._base = backend.base(self._rows)

    @property
    def steps(self) -> int:
        return len(self._rows)

    def logits(self, step: int, previous: Tensor, active: Sequence[int]) -> Tensor:
        base = self._base[step]
        return self._backend.biased(base if len(active) == len(base) else base[list(active)], previous)

    def confidence(self, before: Tensor) -> Tensor | None:
        found = self._backend.confidence(self._rows[: len(before)].flatten(0, 1), before.flatten())
        return None if found is None else found.view_as(before)
