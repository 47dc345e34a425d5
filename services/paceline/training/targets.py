"""The target's distribution at every position that is predicted: the likeliest tokens a drafter can say.

Probabilities are those of the whole vocabulary (softmax of the LM head on the last hidden state), so what they lack to
1 lies on tokens that cannot be drafted, or far down. They depend on sample and draft vocabulary alone: computed when a
sample is first read, kept in a file, so that later epochs and a resumed run need not multiply by the whole head again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from paceline.drafters.hidden.vocabulary import DraftVocabulary

LIKELY = 32  # tokens kept per position
_CHUNK_ROWS = 128


class TargetDistributions:
    """Likeliest draft tokens and their probabilities.

    Args:
        head: the target's LM head, [V, H].
        vocabulary: the draft vocabulary.
        lengths: [samples], positions of each.
        path: where they are kept; made if missing. What it holds is believed: give each vocabulary and each list of
            samples its own; a list that grew at its end keeps what was computed for its beginning.
    """

    def __init__(self, head: Tensor, vocabulary: DraftVocabulary, lengths: NDArray[np.int64], path: Path) -> None:
        self._head = head
        self._ids = vocabulary.target_ids.to(head.device)
        self._likely = min(LIKELY, vocabulary.size)
        self._starts = np.concatenate(([0], np.cumsum(lengths)))
        entry = np.dtype([("ids", "<i4", (self._likely,)), ("chances", "<f2", (self._likely,))])
        total = int(self._starts[-1])
        path.parent.mkdir(parents=True, exist_ok=True)
        self._entries = _mapped(path, entry, total)
        self._done = _mapped(path.with_suffix(".done"), np.dtype("u1"), len(lengths))

    def of(self, index: int, last_hidden: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Draft ids [S, T] (int64) and probabilities [S, T] (float32) of a sample's positions.

        Args:
            index: the sample's place in ``lengths``.
            last_hidden: [S, H].
            first: positions before it are never asked for; theirs are zero.
        """
        rows = slice(int(self._starts[index]), int(self._starts[index + 1]))
        if not self._done[index]:
            self._compute(self._entries[rows], last_hidden, first)
            self._done[index] = 1  # after its entries: a killed process leaves no sample that claims what it lacks
        kept = self._entries[rows]
        ids = torch.from_numpy(kept["ids"].astype(np.int64))
        return ids, torch.from_numpy(kept["chances"].astype(np.float32))

    @torch.no_grad()
    def _compute(self, out: NDArray[np.void], last_hidden: Tensor, first: int) -> None:
        for start in range(first, len(last_hidden), _CHUNK_ROWS):
            rows = slice(start, min(start + _CHUNK_ROWS, len(last_hidden)))
            logits = functional.linear(last_hidden[rows].to(self._head), self._head).float()
            whole = logits.logsumexp(1, keepdim=True)
            best = logits[:, self._ids].topk(self._likely, dim=1)
            out["ids"][rows] = best.indices.cpu().numpy()
            out["chances"][rows] = (best.values - whole).exp().cpu().numpy()


def _mapped(path: Path, dtype: np.dtype[np.void] | np.dtype[np.uint8], count: int) -> NDArray[np.void]:
    with path.open("ab") as file:
        file.truncate(count * dtype.itemsize)
    return np.memmap(path, dtype, "r+", shape=(count,))
