"""From a step's logits to its result, the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.engine.interface import Scores, Slice, StepPlan
from paceline.speculation.sampling import NOTHING, Row, sample
from paceline.speculation.scoring import score


def rows_of(piece: Slice) -> list[Row]:
    """What the sampler is told of a slice's sampled rows."""
    shaping = piece.shaping or (None,) * piece.samples
    first = piece.first_noise_position
    return [Row(piece.sampling, first + i, piece.choice, each) for i, each in enumerate(shaping)]


def draw(plan: StepPlan, logits: Tensor) -> tuple[tuple[tuple[int, ...], ...], tuple[Scores, ...]]:
    """The tokens of each slice's sampled rows; and log probabilities for each slice, or for none if none asks.

    Args:
        logits: [R, V] of the slices' ``logit_rows``, in the plan's order.
    """
    rows = [row for piece in plan.slices for row in rows_of(piece)]
    drawn = iter(sample(_sampled(plan, logits), rows).tolist())
    samples = tuple(tuple(next(drawn) for _ in range(piece.samples)) for piece in plan.slices)
    if all(piece.logprobs is None and not piece.scored for piece in plan.slices):
        return samples, ()
    scores, start = [], 0
    for piece, tokens in zip(plan.slices, samples, strict=True):
        end = start + len(piece.scored) + piece.samples
        scores.append(_scores(piece, tokens, logits[start:end]))
        start = end
    return samples, tuple(scores)


def _sampled(plan: StepPlan, logits: Tensor) -> Tensor:
    """The rows that are sampled: nearly always all of them."""
    if not any(piece.scored for piece in plan.slices):
        return logits
    wanted = [sampled for piece in plan.slices for sampled in (False,) * len(piece.scored) + (True,) * piece.samples]
    return logits[torch.tensor(wanted, device=logits.device)]


def _scores(piece: Slice, tokens: Sequence[int], logits: Tensor) -> Scores:
    """logits: of the slice's scored rows, then of its sampled ones."""
    count = len(piece.scored)
    prompt = tuple(score(logits[i], token, piece.scored_likeliest) for i, token in enumerate(piece.scored))
    if piece.logprobs is None:
        return Scores(prompt)
    # Where nothing was drawn nothing will be committed: whatever stands there is not looked at.
    drawn = [0 if token == NOTHING else token for token in tokens]
    return Scores(prompt, tuple(score(logits[count + i], token, piece.logprobs) for i, token in enumerate(drawn)))
