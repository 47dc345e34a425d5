"""From a step's logits to its result, the same for every engine."""

from __future__ import annotations

from torch import Tensor

from paceline.engine.interface import Slice, StepPlan
from paceline.speculation.sampling import Row, sample


def rows_of(piece: Slice) -> list[Row]:
    """What the sampler is told of a slice's sampled rows."""
    shaping = piece.shaping or (None,) * piece.samples
    first = piece.first_noise_position
    return [Row(piece.sampling, first + i, piece.choice, each) for i, each in enumerate(shaping)]


def draw(plan: StepPlan, logits: Tensor) -> tuple[tuple[int, ...], ...]:
    """The tokens of each slice's sampled rows. logits: [R, V] of all sampled rows, in the plan's order."""
    drawn = iter(sample(logits, [row for piece in plan.slices for row in rows_of(piece)]).tolist())
    return tuple(tuple(next(drawn) for _ in range(piece.samples)) for piece in plan.slices)
