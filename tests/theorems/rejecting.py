"""Exact enumeration of rejection mode: every draft, decision and schedule over a tiny vocabulary, in rationals.

The decisions are the service's own. Acceptance is a predicate of a uniform u, so its probability is counted on a grid
that is fine enough to be exact; the residual is computed in float64, which is exact for probabilities in sixteenths.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache

import torch
from paceline.speculation.acceptance import agree
from paceline.speculation.messages import SparseDistribution
from paceline.speculation.rejection import accepts, residual

from tests.theorems.coupling import Distribution

Prefix = tuple[int, ...]
Model = Callable[[Prefix], Distribution]
Joint = dict[tuple[int, int], Fraction]  # probability of (draft, the row's sample): the draft itself if it is accepted
Position = Callable[[Distribution, Distribution], Joint]  # of p and q
Stop = Callable[[Prefix, Distribution, int], bool]  # of the drafts before, q and the draft: whether to end before it


@cache
def kept(p: Fraction, q: Fraction) -> Fraction:
    """Probability that a draft is accepted: the share of u in (0, 1) for which the service says so."""
    points = p.denominator * q.numerator  # p / q is a multiple of 1 / points
    return Fraction(sum(accepts(p, q, Fraction(2 * i + 1, 2 * points)) for i in range(points)), points)


@cache
def recovery(p: Distribution, q: Distribution) -> Distribution:
    """What a rejected draft is replaced by: the service's residual, normalised; all zero if nothing is left."""
    sent = [(token, float(weight)) for token, weight in enumerate(q) if weight]
    ids, weights = zip(*sent, strict=True)
    target = torch.tensor([float(weight) for weight in p], dtype=torch.float64)
    rest = residual(target, SparseDistribution(ids, weights))
    exact = [Fraction(weight) for weight in rest.tolist()]
    total = sum(exact, Fraction(0))
    return tuple(weight / total if total else Fraction(0) for weight in exact)


def service(p: Distribution, q: Distribution) -> Joint:
    """The rule of the service: draft, acceptance and recovery are drawn independently."""
    rest = recovery(p, q)
    joint: Joint = defaultdict(Fraction)
    for x, chance in enumerate(q):
        if chance:
            keep = kept(p[x] if x < len(p) else Fraction(0), chance)
            joint[x, x] += chance * keep
            for y, weight in enumerate(rest):
                joint[x, y] += chance * (1 - keep) * weight
    return {pair: weight for pair, weight in joint.items() if weight}


def committed(joint: Joint, size: int) -> Distribution:
    """Law of the token committed at a position that is verified."""
    return tuple(sum((weight for (_, y), weight in joint.items() if y == token), Fraction(0)) for token in range(size))


def never(before: Prefix, q: Distribution, draft: int) -> bool:
    """A schedule that ends nothing early."""
    return False


def _branches(
    position: Position, target: Model, drafter: Model, prefix: Prefix, k: int, *, stop: Stop
) -> Iterator[tuple[Prefix, Prefix, Fraction]]:
    """(drafts, their rows' samples, probability) of a round with at most k drafts."""
    going: list[tuple[Prefix, Prefix, Fraction]] = [((), (), Fraction(1))]
    for _ in range(k):
        grown: list[tuple[Prefix, Prefix, Fraction]] = []
        for draft, samples, chance in going:
            seen = prefix + draft
            q = drafter(seen)
            for (x, y), weight in position(target(seen), q).items():
                if stop(draft, q, x):
                    yield draft, samples, chance * weight
                else:
                    grown.append(((*draft, x), (*samples, y), chance * weight))
        going = grown
    yield from going


def committed_pairs(
    position: Position, target: Model, drafter: Model, schedule: tuple[int, ...], stop: Stop = never
) -> dict[Prefix, Fraction]:
    """Law of the first two committed tokens, when rounds have so many drafts each and then none.

    Noise of a position that a round dropped is drawn afresh in the next one, although it is the same noise: what was
    committed does not depend on it. See test_rejection_noise for that.
    """
    law: dict[Prefix, Fraction] = defaultdict(Fraction)
    states: dict[Prefix, Fraction] = {(): Fraction(1)}
    for k in (*schedule, 0, 0):
        following: dict[Prefix, Fraction] = defaultdict(Fraction)
        for prefix, weight in states.items():
            for draft, samples, chance in _branches(position, target, drafter, prefix, k, stop=stop):
                for last, bonus in enumerate(target(prefix + draft)):
                    if bonus:
                        out = prefix + agree(draft, (*samples, last)).tokens
                        (law if len(out) >= 2 else following)[out[:2]] += weight * chance * bonus
        states = following
    assert not states
    return {pair: chance for pair, chance in law.items() if chance}


def target_pairs(target: Model) -> dict[Prefix, Fraction]:
    """The target's own law of two tokens."""
    pairs = {(a, b): first * second for a, first in enumerate(target(())) for b, second in enumerate(target((a,)))}
    return {pair: chance for pair, chance in pairs.items() if chance}
