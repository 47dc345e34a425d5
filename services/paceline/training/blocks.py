"""Many blocks per sample in one pass: what a batch holds, and the drafter's forward pass over it.

The context's keys and values are computed once per sample; every block of it reads those before its anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.cache.target import Sample
from paceline.drafters.hidden.attention import attend_blocks
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.training.losses import Known, LossWeights
from paceline.training.samples import bfloat16, first_predicted
from paceline.training.targets import TargetDistributions


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of one sample. S context positions, A anchors, K draft tokens, T likely tokens."""

    states: Tensor  # [S, L * H] bfloat16; S is the last anchor's position: nothing after it is read
    anchors: Tensor  # [A] token ids
    places: Tensor  # [A] positions, ascending
    previous: Tensor  # [A, K] the token before each that is predicted
    labels: Tensor  # [A, K] the token that came, a target id
    counted: Tensor  # [A, K] bool: it is in the sample, part of the answer, and so are all before it in the block
    likely: Tensor  # [A, K, T]
    chances: Tensor  # [A, K, T]


def blocks_of(
    sample: Sample, index: int, places: NDArray[np.int64], *, draft_tokens: int, targets: TargetDistributions
) -> Blocks:
    """The blocks at ``places`` (at least one) of the sample at ``index`` of the targets."""
    length = len(sample.input_ids)
    tokens = torch.from_numpy(sample.input_ids.astype(np.int64))
    anchors = torch.from_numpy(places)
    before = anchors[:, None] + torch.arange(draft_tokens)  # positions whose next token is predicted
    inside = before + 1 < length
    before = before.clamp_max(length - 2)
    answer = torch.from_numpy(sample.loss_mask.astype(bool))
    likely, chances = targets.of(index, bfloat16(sample.last_hidden), first_predicted(sample))
    return Blocks(
        states=bfloat16(sample.hidden[: int(places[-1])]),
        anchors=tokens[anchors],
        places=anchors,
        previous=tokens[before],
        labels=tokens[before + 1],
        counted=(inside & answer[before + 1]).int().cumprod(1).bool(),
        likely=likely[before],
        chances=chances[before],
    )


def forward(drafter: HiddenDrafter, batch: Sequence[Blocks]) -> Tensor:
    """Rows of all blocks, [sum of A, K, H]."""
    device = drafter.fc.weight.device
    lengths = [len(blocks.states) for blocks in batch]
    projected = drafter.project(torch.cat([blocks.states for blocks in batch]).to(device))
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    keys, values = drafter.context(projected, positions)
    size = drafter.config.block_size
    context_ends = np.cumsum(lengths).tolist()
    row_ends = np.cumsum([size * len(blocks.places) for blocks in batch]).tolist()
    seen = [blocks.places.to(device) for blocks in batch]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = []
        for index, places in enumerate(seen):
            rows = slice(row_ends[index - 1] if index else 0, row_ends[index])
            past = slice(context_ends[index - 1] if index else 0, context_ends[index])
            context = keys[layer, past].to(q.dtype), values[layer, past].to(v.dtype)
            out.append(attend_blocks(q[rows], k[rows], v[rows], context, block=size, lengths=places))
        return torch.cat(out)

    anchors = torch.cat([blocks.anchors for blocks in batch]).to(device)
    return drafter.rows(anchors, torch.cat(seen), attend)


def known_of(batch: Sequence[Blocks], drafter: HiddenDrafter, weights: LossWeights) -> tuple[Known, Tensor, Tensor]:
    """What rows are to predict, of rows that count, in the order of ``forward``'s.

    Returns it (weights not yet divided by their sum), which rows count [sum of A, K], and the tokens before them [N].
    """
    device = drafter.fc.weight.device
    counted = torch.cat([blocks.counted for blocks in batch]).to(device)
    labels = torch.cat([blocks.labels for blocks in batch]).to(device)[counted]
    rows = weights.of_rows(counted.shape[1]).to(device).expand(counted.shape)[counted]
    known = Known(
        labels=drafter.vocabulary.draft_ids.to(device)[labels],
        likely=torch.cat([blocks.likely for blocks in batch]).to(device)[counted],
        chances=torch.cat([blocks.chances for blocks in batch]).to(device)[counted],
        weights=rows,
    )
    return known, counted, torch.cat([blocks.previous for blocks in batch]).to(device)[counted]
