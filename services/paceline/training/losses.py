"""What a drafter learns from (DSpark, arXiv 2607.05147, section on training): 0.1 CE + 0.9 TV + 1.0 confidence.

Per row of a block: cross-entropy of the token that came, total variation between the drafter's distribution q and the
target's p, and how far the confidence head is from 1 - TV, which is the probability of acceptance. The k-th row of a
block weighs ``exp(-(k - 1) / gamma)``.

p is the target's distribution over its *whole* vocabulary, known by its likeliest tokens that can be drafted: the mass
that lies elsewhere is lost to every drafter of this vocabulary and counts as rejected.

The vocabulary is what costs, so scores, losses and gradients of a few rows at a time are computed together while they
are in the processor's cache, and only gradients of the small sides are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_CHUNK_ROWS = 256
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class LossWeights:
    """How much each part counts."""

    cross_entropy: float = 0.1
    distillation: float = 0.0  # cross-entropy against the target's distribution instead of the token that came
    total_variation: float = 0.9
    confidence: float = 1.0
    confidence_teaches: bool = True  # whether the confidence head's loss reaches the layers below it
    gamma: float = 4.0  # rows weigh exp(-(k - 1) / gamma)

    def of_rows(self, draft_tokens: int) -> Tensor:
        """[K]."""
        return torch.exp(-torch.arange(draft_tokens, dtype=torch.float32) / self.gamma)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the token each of N rows is to predict."""

    labels: Tensor  # [N] the token that came, as a draft id; -1 if it cannot be drafted
    likely: Tensor  # [N, T] draft ids the target finds likely
    chances: Tensor  # [N, T] their probabilities under the target
    weights: Tensor  # [N] what each row counts; they sum to 1 over all that is averaged


@dataclass(frozen=True, slots=True)
class Scored:
    """Losses of N rows."""

    loss: Tensor  # scalar: weighted CE and TV
    overlap: Tensor  # [N] 1 - TV: the probability of acceptance; no gradient
    hits: Tensor  # [N] bool: the likeliest draft is the token that came


def score(
    features: Tensor, head: Tensor, side: tuple[Tensor, Tensor] | None, known: Known, weights: LossWeights
) -> Scored:
    """Losses of rows scored by ``features @ head.T + side[0] @ side[1].T``.

    Args:
        features: [N, H].
        head: [Vd, H], frozen.
        side: the Markov head's row for the token before, [N, r], and its W2, [Vd, r]; None without that head.
    """
    empty = features.new_zeros((0,))
    before, w2 = side or (empty, empty)
    loss, overlap, hits = _Score.apply(features, before, w2, head, (known, weights))  # type: ignore[no-untyped-call]
    return Scored(loss, overlap, hits)


def confidence_loss(logits: Tensor, overlap: Tensor, row_weights: Tensor) -> Tensor:
    """Weighted binary cross-entropy of estimated acceptance (logits [N]) against ``overlap`` [N]."""
    each = functional.binary_cross_entropy_with_logits(logits.float(), overlap, reduction="none")
    return (each * row_weights).sum()


def plain_score(logits: Tensor, known: Known, weights: LossWeights) -> Tensor:
    """The same loss by its formula, for tests and small models: [N, Vd] logits -> scalar."""
    logs = logits.float().log_softmax(-1)
    can = known.labels >= 0
    entropy = -logs.gather(1, known.labels.clamp_min(0)[:, None])[:, 0] * can
    likely = logs.gather(1, known.likely)
    overlap = torch.minimum(likely.exp(), known.chances).sum(1)
    distilled = -(known.chances * likely).sum(1)
    each = weights.cross_entropy * entropy + weights.distillation * distilled + weights.total_variation * (1 - overlap)
    return (each * known.weights).sum()


class _Score(torch.autograd.Function):
    """Gradients are computed with the scores, so that scores of the whole vocabulary are never kept."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        features, before, w2, head, (known, weights) = given
        count, width = features.shape
        joint = head if not before.numel() else torch.cat((head, w2.to(head.dtype)), dim=1)
        rows = (features if not before.numel() else torch.cat((features, before.to(features.dtype)), 1)).to(head.dtype)
        grads = torch.empty_like(rows)
        w2_grad = torch.zeros_like(w2)
        overlap = torch.empty(count, device=rows.device)
        hits = torch.empty(count, dtype=torch.bool, device=rows.device)
        loss = torch.zeros((), device=rows.device)
        for part in _parts(count):
            gradient, each, overlap[part], hits[part] = _one(rows[part] @ joint.t(), known, part, weights)
            loss += (each * known.weights[part]).sum()
            gradient = gradient.to(head.dtype)
            torch.mm(gradient, joint, out=grads[part])
            if before.numel():
                w2_grad += gradient.t() @ rows[part, width:]
        ctx.save_for_backward(grads[:, :width].to(features.dtype), grads[:, width:].to(before.dtype), w2_grad)
        ctx.mark_non_differentiable(overlap, hits)
        return loss, overlap, hits

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        features, before, w2 = ctx.saved_tensors
        by = outer[0]
        if not before.numel():
            return features * by, None, None, None, None
        return features * by, before * by, w2 * by, None, None


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK_ROWS, count)) for start in range(0, count, _CHUNK_ROWS))


def _one(logits: Tensor, known: Known, part: slice, weights: LossWeights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient [n, Vd], loss [n], overlap [n], hits [n] of a few rows.

    With q = softmax(z): d CE / dz = q - onehot, against p instead of a token it is q * (sum of p) - p;
    d overlap / dz_j = q_j (1[q_j < p_j] - s), where s is the mass of q on tokens with q < p. So the dense part is q
    times one number per row, and the rest is sparse.
    """
    labels, likely, chances, row = known.labels[part], known.likely[part], known.chances[part], known.weights[part]
    exps = logits.float()
    exps.sub_(exps.amax(1, keepdim=True)).exp_()
    total = exps.sum(1)
    can = labels >= 0
    index = labels.clamp_min(0)[:, None]
    at_label = exps.gather(1, index)[:, 0]
    shares = exps.gather(1, likely) / total[:, None]
    overlap = torch.minimum(shares, chances).sum(1)
    below = shares * (shares < chances)
    entropy = (total / at_label.clamp_min(_TINY)).log() * can
    distilled = -(chances * shares.clamp_min(_TINY).log()).sum(1)
    loss = weights.cross_entropy * entropy + weights.distillation * distilled + weights.total_variation * (1 - overlap)
    hard, soft, varied = (row * by for by in (weights.cross_entropy, weights.distillation, weights.total_variation))
    dense = hard * can + soft * chances.sum(1) + varied * below.sum(1)
    gradient = exps.mul_((dense / total)[:, None])
    hits = (at_label == 1.0) & can
    gradient.scatter_add_(1, likely, -(varied[:, None] * below + soft[:, None] * chances))
    gradient.scatter_add_(1, index, -(hard * can)[:, None])
    return gradient, loss, overlap, hits
