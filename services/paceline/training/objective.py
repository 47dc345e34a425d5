"""A batch's loss and what is worth knowing of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.drafters.hidden.network import HiddenDrafter
from paceline.training.blocks import Blocks, forward, known_of
from paceline.training.losses import LossWeights, confidence_loss, score


@dataclass(frozen=True, slots=True)
class Outcome:
    """Sums over a batch's rows that count; add those of all processes before dividing.

    K draft tokens; ``rows``, ``hits`` and ``overlaps`` are per draft position.
    """

    loss: Tensor  # scalar with gradient: a sum of weighted losses
    weight: float  # sum of the rows' weights
    rows: Tensor  # [K]
    hits: Tensor  # [K] whose likeliest draft is the token that came (given the tokens before it)
    overlaps: Tensor  # [K] sum of 1 - TV

    def facts(self) -> Tensor:
        """[2 + 3 K]: loss, weight, rows, hits, overlaps."""
        head = torch.tensor([float(self.loss.detach()), self.weight])
        return torch.cat((head, self.rows.cpu(), self.hits.cpu(), self.overlaps.cpu()))


def outcome(drafter: HiddenDrafter, batch: Sequence[Blocks], weights: LossWeights) -> Outcome:
    """Run a batch: loss and its gradient's graph."""
    hidden = forward(drafter, batch)
    known, counted, previous = known_of(batch, drafter, weights)
    features = hidden[counted]
    markov = drafter.markov_head
    side = (markov.markov_w1(previous), markov.markov_w2.weight) if markov is not None else None
    scored = score(features, drafter.lm_head, side, known, weights)
    loss = scored.loss
    logits = drafter.confidence(features if weights.confidence_teaches else features.detach(), previous)
    if logits is not None and weights.confidence:
        loss = loss + weights.confidence * confidence_loss(logits, scored.overlap, known.weights)
    steps = counted.shape[1]
    column = torch.arange(steps, device=counted.device).expand(counted.shape)[counted]
    return Outcome(
        loss=loss,
        weight=float(known.weights.sum()),
        rows=torch.bincount(column, minlength=steps).float(),
        hits=torch.bincount(column, scored.hits.float(), minlength=steps),
        overlaps=torch.bincount(column, scored.overlap.float(), minlength=steps),
    )
