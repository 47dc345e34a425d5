"""From a step's logits to its result, the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from torch import Tensor

from paceline.engine.interface import Scores, Slice, StepPlan, StepResult
from paceline.speculation import drawing
from paceline.speculation.sampling import NOTHING, DrawFast, Row
from paceline.speculation.scoring import score

T = TypeVar("T")


def rows_of(piece: Slice) -> list[Row]:
    """What the sampler is told of a slice's sampled rows."""
    shaping = piece.shaping or (None,) * piece.samples
    drafts = (*piece.drafts, *(None,) * (piece.samples - len(piece.drafts)))
    first = piece.first_noise_position
    return [
        Row(piece.sampling, first + i, piece.choice, each, draft, piece.proposes)
        for i, (each, draft) in enumerate(zip(shaping, drafts, strict=True))
    ]


def draw(plan: StepPlan, logits: Tensor, fast: DrawFast | None = None) -> StepResult:
    """What the rows of a step yield, its duration left at zero.

    Args:
        logits: [R, V] of the slices' ``logit_rows``, in the plan's order.
        fast: see ``sampling.sample``.
    """
    rows = [row for piece in plan.slices for row in rows_of(piece)]
    drawn = drawing.draw(_sampled(plan, logits), rows, fast)
    samples = _split(plan, drawn.tokens)
    sent = [tuple(each for each in part if each is not None) for part in _split(plan, drawn.distributions)]
    return StepResult(
        samples=samples,
        duration_s=0.0,
        scores=_all_scores(plan, samples, logits),
        distributions=tuple(sent) if any(sent) else (),
        relaxed=_split(plan, drawn.relaxed) if any(drawn.relaxed) else (),
    )


def _split(plan: StepPlan, values: Sequence[T]) -> tuple[tuple[T, ...], ...]:
    ends = accumulate((piece.samples for piece in plan.slices), initial=0)
    return tuple(tuple(values[start:end]) for start, end in pairwise(ends))


def _sampled(plan: StepPlan, logits: Tensor) -> Tensor:
    """The rows that are sampled: nearly always all of them."""
    if not any(piece.scored for piece in plan.slices):
        return logits
    wanted = [sampled for piece in plan.slices for sampled in (False,) * len(piece.scored) + (True,) * piece.samples]
    return logits[torch.tensor(wanted, device=logits.device)]


def _all_scores(plan: StepPlan, samples: Sequence[Sequence[int]], logits: Tensor) -> tuple[Scores, ...]:
    """Log probabilities for each slice, or for none if none asks."""
    if all(piece.logprobs is None and not piece.scored for piece in plan.slices):
        return ()
    ends = accumulate((len(piece.scored) + piece.samples for piece in plan.slices), initial=0)
    pieces = zip(plan.slices, samples, pairwise(ends), strict=True)
    return tuple(_scores(piece, tokens, logits[start:end]) for piece, tokens, (start, end) in pieces)


def _scores(piece: Slice, tokens: Sequence[int], logits: Tensor) -> Scores:
    """logits: of the slice's scored rows, then of its sampled ones."""
    count = len(piece.scored)
    prompt = tuple(score(logits[i], token, piece.scored_likeliest) for i, token in enumerate(piece.scored))
    if piece.logprobs is None:
        return Scores(prompt)
    # Where nothing was drawn nothing will be committed: whatever stands there is not looked at.
    drawn = [0 if token == NOTHING else token for token in tokens]
    return Scores(prompt, tuple(score(logits[count + i], token, piece.logprobs) for i, token in enumerate(drawn)))
