"""The draft vocabulary: the target tokens a drafter can say, ascending, mapped as in EAGLE-3 and ``speculators``.

``d2t[i] = target id - i`` (an offset), ``t2d[t]`` says whether target token t is one of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.speculation.errors import InvalidRequest


class DraftVocabulary:
    """Which target tokens can be drafted.

    ``target_ids``: [Vd], ascending; ``draft_ids``: [V], the place of a target token in it, -1 for none.
    """

    def __init__(self, target_ids: Tensor, vocab_size: int) -> None:
        """Raises InvalidRequest unless the ids ascend and are below ``vocab_size``."""
        ids = target_ids.to(torch.long)
        if not len(ids) or int(ids[0]) < 0 or int(ids[-1]) >= vocab_size or bool((ids[1:] <= ids[:-1]).any()):
            raise InvalidRequest("d2t", expected=f"ascending token ids below {vocab_size}", got=ids[:8].tolist())
        self.target_ids = ids
        self.vocab_size = vocab_size
        self.draft_ids = torch.full((vocab_size,), -1, dtype=torch.long)
        self.draft_ids[ids] = torch.arange(len(ids))

    @property
    def size(self) -> int:
        return len(self.target_ids)

    @classmethod
    def full(cls, vocab_size: int) -> DraftVocabulary:
        """Every target token."""
        return cls(torch.arange(vocab_size), vocab_size)

    @classmethod
    def by_frequency(cls, counts: Tensor, size: int) -> DraftVocabulary:
        """The ``size`` likeliest of the tokens counted, [V]; among equals the lower id."""
        if not 1 <= size <= len(counts):
            raise InvalidRequest("draft_vocab_size", expected=f"1 .. {len(counts)}", got=size)
        order = torch.argsort(counts, descending=True, stable=True)[:size]
        return cls(order.sort().values, len(counts))

    @classmethod
    def from_offsets(cls, d2t: Tensor, vocab_size: int) -> DraftVocabulary:
        """From the ``d2t`` of a checkpoint."""
        return cls(d2t.to(torch.long) + torch.arange(len(d2t)), vocab_size)

    def offsets(self) -> Tensor:
        """``d2t``: [Vd] int64."""
        return self.target_ids - torch.arange(self.size)

    def membership(self) -> Tensor:
        """``t2d``: [V] bool."""
        return self.draft_ids >= 0
