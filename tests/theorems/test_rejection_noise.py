"""Noise that is a function of the position: a position drafted again after a rejection reuses it, and may.

Every value of every noise variable of two positions is enumerated. The vocabulary has two tokens, so that a rejected
draft leaves one and recovery needs no noise. Probabilities are quarters: draft and target noise take 4 values each,
acceptance noise 12, which any p / q of quarters divides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import pytest
from paceline.speculation.acceptance import agree
from paceline.speculation.rejection import accepts

QUARTERS, TWELFTHS = 4, 12
P = {(): 3, (0,): 1, (1,): 2}  # quarters of token 0 after a prefix
Q = {(): 1, (0,): 3, (1,): 0}
KS = (2, 1)  # drafts of the first and the second round


class Noise(NamedTuple):
    """Of one position."""

    draft: int
    accept: int
    target: int


Redraw = Callable[[Noise, int], Noise]  # the noise of a position in a round


def _commit(noise: tuple[Noise, ...], redraw: Redraw) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    for number, k in enumerate((*KS, 0)):
        base = tokens
        draft: list[int] = []
        samples: list[int] = []
        for position in range(len(base), 2):
            at, seen = redraw(noise[position], number), (*base, *draft)
            if len(draft) == k:
                break
            x = int(at.draft >= Q[seen])
            p, q = (Fraction(table[seen] if x == 0 else QUARTERS - table[seen], QUARTERS) for table in (P, Q))
            keep = accepts(p, q, Fraction(2 * at.accept + 1, 2 * TWELFTHS))
            draft.append(x)
            samples.append(x if keep else 1 - x)
        if len(base) + len(draft) < 2:
            seen = (*base, *draft)
            samples.append(int(redraw(noise[len(seen)], number).target >= P[seen]))
        else:
            samples.append(0)  # a third token nobody looks at
        tokens = (*base, *agree(draft, samples).tokens)[:2]
        if len(tokens) == 2:
            return tokens
    raise AssertionError("each round commits a token")


def _law(redraw: Redraw) -> dict[tuple[int, ...], Fraction]:
    values = [Noise(*each) for each in product(range(QUARTERS), range(TWELFTHS), range(QUARTERS))]
    counts = Counter(_commit(noise, redraw) for noise in product(values, repeat=2))
    return {pair: Fraction(count, len(values) ** 2) for pair, count in counts.items()}


def _target() -> dict[tuple[int, ...], Fraction]:
    chance = {seen: (Fraction(p, QUARTERS), 1 - Fraction(p, QUARTERS)) for seen, p in P.items()}
    return {(a, b): chance[()][a] * chance[(a,)][b] for a in (0, 1) for b in (0, 1)}


def test_a_position_drafted_again_may_reuse_its_noise() -> None:
    assert _law(lambda noise, number: noise) == _target()


@pytest.mark.parametrize(
    "shared",
    [
        lambda noise, number: noise._replace(accept=noise.draft * TWELFTHS // QUARTERS),
        lambda noise, number: noise._replace(draft=noise.accept * QUARTERS // TWELFTHS),
    ],
    ids=["accept with the draft's", "draft with the acceptance's"],
)
def test_caught_one_stream_for_draft_and_acceptance(shared: Redraw) -> None:
    assert _law(shared) != _target()
