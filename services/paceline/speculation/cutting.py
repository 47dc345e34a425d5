"""What top-k, top-p and min-p leave of a distribution, in this order.

Top-k keeps the k likeliest tokens. Top-p keeps the fewest of the likeliest that have at least p of the mass that is
left by then: of what top-k kept, or of everything. Min-p keeps what is at least min-p times as likely as the likeliest
token. This is the order of transformers' generation (vLLM applies min-p first, so top-p counts less mass there). Each
of them keeps a beginning of the tokens by likelihood, equal ones by their ids; the likeliest token is always left.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paceline.speculation.params import SamplingParams


def cuts(params: SamplingParams) -> bool:
    """Whether any of the three options is set."""
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def survivors(logits: Tensor, params: SamplingParams) -> Tensor:
    """Token ids left by top-k, top-p and min-p, likeliest first (equal logits: lowest id first).

    Args:
        logits: float32 or wider [V], shaped; temperature not yet applied.

    Returns:
        int64 [n], n >= 1.
    """
    scaled = logits.to(torch.float32) / params.temperature
    top_k = params.top_k if params.top_k < scaled.shape[0] else 0  # more than there are keep all
    tokens = _sorted_above(scaled, _threshold(scaled, top_k, params))
    if top_k:
        tokens = tokens[:top_k]
    if params.top_p < 1:
        tokens = tokens[: _nucleus(scaled, tokens, top_k, params.top_p)]
    if params.min_p > 0:
        kept = scaled[tokens] >= scaled[tokens[0]] + math.log(params.min_p)
        tokens = tokens[: max(1, int(kept.sum()))]
    return tokens


def likeliest(logits: Tensor, params: SamplingParams, most: int) -> Tensor:
    """The first ``most`` of the survivors, without sorting more of the vocabulary than that takes; int64 [n]."""
    if cuts(params):
        return survivors(logits, params)[:most]
    scaled = logits.to(torch.float32) / params.temperature
    least = torch.topk(scaled, min(most, scaled.shape[0]), sorted=False).values.amin()
    return _sorted_above(scaled, least)[:most]


def _threshold(scaled: Tensor, top_k: int, params: SamplingParams) -> Tensor:
    """A logit below which no survivor lies, and no token whose mass counts: cheap, so that few tokens need sorting.

    With top-k, that is top-k's own alone: top-p counts all that top-k keeps, whatever min-p leaves of it afterwards.
    Without it, top-p counts the whole vocabulary, sorted or not, and min-p may trim first.
    """
    peak = scaled.amax()
    if top_k:
        return torch.topk(scaled, top_k, sorted=False).values.amin()
    threshold = torch.full_like(peak, -math.inf)
    if params.top_p < 1:
        # Tokens less likely than (1 - p) / V have less than 1 - p in all, so the rest holds the nucleus. The factor
        # 1/2 keeps rounding on the safe side.
        mass = torch.exp(scaled - peak).sum(dtype=torch.float64)
        share = (1 - params.top_p) / (2 * scaled.shape[0])
        threshold = (peak.to(torch.float64) + torch.log(mass) + math.log(share)).to(scaled.dtype)
    if params.min_p > 0:
        threshold = torch.maximum(threshold, peak + math.log(params.min_p))
    return torch.minimum(threshold, peak)


def _sorted_above(scaled: Tensor, threshold: Tensor) -> Tensor:
    tokens = torch.nonzero(scaled >= threshold).squeeze(1)
    order = torch.sort(scaled[tokens], descending=True, stable=True).indices
    return tokens[order]


def _nucleus(scaled: Tensor, tokens: Tensor, top_k: int, top_p: float) -> int:
    """How many of the sorted tokens form the smallest set with at least top_p of the mass."""
    peak = scaled[tokens[0]]
    weights = torch.exp((scaled[tokens] - peak).to(torch.float64))
    # With top-k before it, top-p counts the mass of what top-k kept; alone, that of the whole vocabulary.
    total = weights.sum() if top_k else torch.exp(scaled - peak).sum(dtype=torch.float64)
    before = torch.cumsum(weights, 0) - weights
    return max(1, int((before < top_p * total).sum()))
