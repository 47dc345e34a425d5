"""Exact integration of the Gumbel coupling: rational arithmetic, no sampling and no tolerance.

Drafter and target run exponential races over the same E_k ~ Exp(1): the drafter's token is argmin E_k / q_k, the
target's argmin E_k / p_k. With s = E_i and t = E_j = r s, the event (drafter draws i, target draws j ≠ i) is
q_j / q_i < r < p_j / p_i, and every other E_k must exceed max(s q_k / q_i, r s p_k / p_j). Integrating s out leaves
∫ dr / (1 + r + Σ_k max(q_k / q_i, r p_k / p_j))², whose integrand is 1 / (c + d r)² between breakpoints.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

Distribution = tuple[Fraction, ...]


def coupling(q: Distribution, p: Distribution) -> list[list[Fraction]]:
    """C[i][j] = probability that the drafter draws i and the target draws j with shared noise."""
    tokens = range(len(p))
    return [[_same(q, p, i) if i == j else _different(q, p, i, j) for j in tokens] for i in tokens]


def _same(q: Distribution, p: Distribution, i: int) -> Fraction:
    """Both draw i: E_i / q_i and E_i / p_i least, so every E_k > E_i max(q_k / q_i, p_k / p_i)."""
    if not q[i] or not p[i]:
        return Fraction(0)
    return 1 / sum((max(q[k] / q[i], p[k] / p[i]) for k in range(len(p))), Fraction(0))


def _different(q: Distribution, p: Distribution, i: int, j: int) -> Fraction:
    if not q[i] or not p[j]:
        return Fraction(0)
    low = q[j] / q[i]
    others = [k for k in range(len(p)) if k not in (i, j)]
    slopes = [(q[k] / q[i], p[k] / p[j]) for k in others]
    high = p[j] / p[i] if p[i] else None  # None: no upper end
    if high is not None and high <= low:
        return Fraction(0)
    inside = {a / b for a, b in slopes if b and a / b > low and (high is None or a / b < high)}
    ends: list[Fraction | None] = [low, *sorted(inside), high]
    return sum((_piece(slopes, start, end) for start, end in pairwise(ends) if start is not None), Fraction(0))


def _piece(slopes: list[tuple[Fraction, Fraction]], start: Fraction, end: Fraction | None) -> Fraction:
    """∫ dr / (c + d r)² from start to end, where no max changes sides in between."""
    middle = (start + end) / 2 if end is not None else start + 1
    constant, slope = Fraction(1), Fraction(1)
    for a, b in slopes:
        if a >= middle * b:
            constant += a
        else:
            slope += b
    upper = 1 / (constant + slope * end) if end is not None else Fraction(0)
    return (1 / (constant + slope * start) - upper) / slope


def total_variation(q: Distribution, p: Distribution) -> Fraction:
    return sum((abs(a - b) for a, b in zip(q, p, strict=True)), Fraction(0)) / 2
