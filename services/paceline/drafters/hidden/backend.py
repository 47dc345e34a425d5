"""The seam under a served drafter: sessions' contexts, and blocks that read them."""

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


@dataclass(frozen=True, slots=True)
class BlockAsk:
    """One block: the anchor's token and position, which is how many context positions there are before it."""

    session_id: str
    anchor: int
    position: int


class Backend(Protocol):
    """A drafter's network as it runs: keys and values of contexts, the pass over blocks, and the heads."""

    @property
    def dtype(self) -> torch.dtype: ...

    def reserve(self, session_id: str, positions: int) -> bool:
        """Room for a session of so many positions, the block's own included; False if there is none now."""
        ...

    def free(self, session_id: str) -> None:
        """Forget a session's context. Unknown ones are ignored."""
        ...

    def append(self, pieces: Sequence[Piece]) -> None:
        """Take context features in. Sessions are reserved as far as that, and named once each."""
        ...

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
