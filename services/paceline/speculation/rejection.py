"""Rejection mode: speculative sampling with a draft's own distribution.

The drafter draws x from q and says what q was; the target, whose distribution after all options is p, accepts x with
probability min(1, p(x) / q(x)) and else draws from the residual, max(0, p - q) normalised. What is committed has the
law p (Leviathan, Kalman, Matias, arXiv 2211.17192, section 2.3 and appendix A.1; Chen et al., 2302.01318, theorem 1),
and x is accepted with probability 1 - TV(p, q). After a fully accepted block, and where nothing was drafted, the token
is the target's own sample, drawn as in agreement mode.

Three things are easily got wrong, and the law with them:

- q must be what x was drawn from. A drafter truncates to its likeliest tokens, rounds to float32, and only then draws:
  q(x) is ``probabilities[x] / fsum(probabilities)`` of the serialised form, in float64, on both sides.
- The draft, the acceptance and the recovery each have noise of their own (``noise.STREAM_*``).
- Whether a position is verified may depend on the drafts before it and on the shape of its q, never on its draft. One
  that cannot be (an id the target doesn't have, a token an option forbids) is rejected in place: p(x) is 0 there.

All noise is a function of (seed, choice, stream, position, token), so the same drafts give the same text; other drafts
(another drafter, K, a missed deadline) give another text of the same law. That is what agreement mode adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor

from paceline.speculation.cutting import likeliest
from paceline.speculation.messages import MAX_SUPPORT, Draft, SparseDistribution
from paceline.speculation.noise import STREAM_ACCEPT, STREAM_DRAFT, STREAM_RECOVERY
from paceline.speculation.sampling import Row, noise_of, probabilities, race

Number = TypeVar("Number", float, Fraction)


def accepts(p: Number, q: Number, u: Number) -> bool:
    """Whether a draft that the target gives p and that was drawn with q > 0 is kept; u is uniform in (0, 1)."""
    return u * q < p


def normalised(distribution: SparseDistribution) -> list[float]:
    """What the draft was drawn with, in the order of ``ids``; sums to 1."""
    total = math.fsum(distribution.probabilities)
    return [weight / total for weight in distribution.probabilities]


def residual(p: Tensor, distribution: SparseDistribution) -> Tensor:
    """max(0, p - q), float64 [V], not normalised. Ids that p has no room for count as p = 0."""
    pairs = zip(distribution.ids, normalised(distribution), strict=True)
    inside = [(token, weight) for token, weight in pairs if token < p.shape[0]]
    out = p.clone()
    if inside:
        tokens, weights = zip(*inside, strict=True)
        out[list(tokens)] -= torch.tensor(weights, dtype=torch.float64, device=p.device)
    return out.clamp_(min=0.0)


def serialised(logits: Tensor, row: Row, support: int = MAX_SUPPORT) -> SparseDistribution:
    """A drafter's distribution as it is sent: its likeliest tokens, renormalised, in float32.

    Args:
        logits: [V]; the row's options are applied.
        support: tokens kept at most.
    """
    tokens = likeliest(logits, row.params, support)
    weights = torch.softmax(logits[tokens].to(torch.float64) / row.params.temperature, dim=0).to(torch.float32)
    pairs = [pair for pair in zip(tokens.tolist(), weights.tolist(), strict=True) if pair[1] > 0]
    return SparseDistribution(tuple(token for token, _ in pairs), tuple(weight for _, weight in pairs))


def propose(logits: Tensor, rows: Sequence[Row]) -> list[Draft]:
    """Draw a draft token for each row, from what is sent.

    Args:
        logits: [R, V].
        rows: R descriptions, none of them greedy.
    """
    sent = [serialised(logits[i], row) for i, row in enumerate(rows)]
    owner = torch.repeat_interleave(torch.tensor([len(each.ids) for each in sent]))
    tokens = torch.tensor([token for each in sent for token in each.ids])
    weights = torch.tensor([weight for each in sent for weight in each.probabilities], dtype=torch.float64)
    scores = torch.log(weights) - torch.log(noise_of(rows, "cpu", STREAM_DRAFT).at(owner, tokens))
    best = torch.full((len(rows),), -math.inf, dtype=torch.float64).scatter_reduce_(0, owner, scores, "amax")
    candidates = torch.where(scores == best[owner], tokens, logits.shape[1])
    drawn = torch.full((len(rows),), logits.shape[1]).scatter_reduce_(0, owner, candidates, "amin").tolist()
    return [Draft(token, each) for token, each in zip(drawn, sent, strict=True)]


def judge(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """The token of each row: its draft if that is accepted, else one drawn from the residual, which is never its draft.

    Args:
        logits: [R, V].
        rows: R descriptions, each with a draft and the distribution it was drawn from, none of them greedy.
    """
    uniforms = noise_of(rows, "cpu", STREAM_ACCEPT).uniforms().tolist()
    out, rejected, left = [], [], []
    for i, (row, u) in enumerate(zip(rows, uniforms, strict=True)):
        draft = row.draft
        assert draft is not None, row
        assert draft.distribution is not None, row
        out.append(draft.token)
        p = probabilities(logits[i], row.params)
        place = draft.distribution.ids.index(draft.token)
        chance = float(p[draft.token]) if draft.token < p.shape[0] else 0.0
        if not accepts(chance, normalised(draft.distribution)[place], u):
            rest = residual(p, draft.distribution)
            # p = q up to rounding leaves nothing to draw from: as good as accepted.
            if bool(rest.any()):
                rejected.append(i)
                left.append(rest)
    if rejected:
        noise = noise_of([rows[i] for i in rejected], logits.device, STREAM_RECOVERY)
        weights = torch.log(torch.stack(left))
        drawn = race(weights, torch.ones_like(weights[:, 0]), noise)
        for i, token in zip(rejected, drawn.tolist(), strict=True):
            out[i] = token
    return out
