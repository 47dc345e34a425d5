"""The promise of agreement mode: two consecutive committed tokens have the target's joint distribution, exactly.

Every path of every schedule over a tiny vocabulary is enumerated with its exact probability, and the code that
decides, ``acceptance.agree``, is the service's own. A rule that is subtly wrong must fail the same test.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product

import pytest
from paceline.speculation.acceptance import agree

from tests.theorems.coupling import Distribution, coupling

VOCABULARY = 3
Prefix = tuple[int, ...]
Model = Callable[[Prefix], Distribution]
Rule = Callable[[Prefix, Prefix], Prefix]


def _model(*tables: tuple[int, ...]) -> Model:
    """A language model of order 1: the first table starts, table 1 + t follows token t."""

    def distribution(prefix: Prefix) -> Distribution:
        counts = tables[1 + prefix[-1]] if prefix else tables[0]
        return tuple(Fraction(count, sum(counts)) for count in counts)

    return distribution


TARGET = _model((5, 3, 2), (1, 1, 8), (4, 0, 3), (2, 2, 1))
DRAFTERS = {
    "identical": TARGET,
    "uniform": _model(*[(1, 1, 1)] * 4),
    "opposite": _model((2, 3, 5), (8, 1, 1), (0, 4, 1), (1, 2, 2)),
    "certain and wrong": _model((0, 0, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "narrow": _model((1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)),
}
SCHEDULES = list(product((0, 1, 2, 3), repeat=2))


def service_rule(draft: Prefix, samples: Prefix) -> Prefix:
    return agree(draft, samples).tokens


def _position(drafter: Model, draft_prefix: Prefix, target_prefix: Prefix) -> list[list[Fraction]]:
    """Joint law of (draft, sample) at one position, both with that position's noise."""
    return coupling(drafter(draft_prefix), TARGET(target_prefix))


def _round(drafter: Model, prefix: Prefix, k: int) -> Iterator[tuple[Prefix, Prefix, Fraction]]:
    """All (draft, samples, probability) of a round with k drafts after a committed prefix.

    The target's sample at position j conditions on the draft before it: that is what one forward pass computes.
    """
    branches: list[tuple[Prefix, Prefix, Fraction]] = [((), (), Fraction(1))]
    for _ in range(k):
        grown = []
        for draft, samples, chance in branches:
            seen = prefix + draft
            joint = _position(drafter, seen, seen)
            for x, y in product(range(VOCABULARY), repeat=2):
                if joint[x][y]:
                    grown.append(((*draft, x), (*samples, y), chance * joint[x][y]))
        branches = grown
    for draft, samples, chance in branches:
        for y, last in enumerate(TARGET(prefix + draft)):
            if last:
                yield draft, (*samples, y), chance * last


def _committed_pairs(drafter: Model, schedule: tuple[int, ...], rule: Rule) -> dict[Prefix, Fraction]:
    """Law of the first two committed tokens.

    Noise of a position beyond the last committed one is drawn afresh in the next round although it is the same
    noise: only what lay after a wrong draft is dropped, and the committed tokens do not depend on it.
    """
    law: dict[Prefix, Fraction] = defaultdict(Fraction)
    states: dict[Prefix, Fraction] = {(): Fraction(1)}
    for k in (*schedule, 0, 0):
        following: dict[Prefix, Fraction] = defaultdict(Fraction)
        for prefix, weight in states.items():
            for draft, samples, chance in _round(drafter, prefix, k):
                committed = prefix + rule(draft, samples)
                into = law if len(committed) >= 2 else following
                into[committed[:2]] += weight * chance
        states = following
    assert not states
    return dict(law)


def _target_pairs() -> dict[Prefix, Fraction]:
    pairs = product(range(VOCABULARY), repeat=2)
    law = {(a, b): TARGET(())[a] * TARGET((a,))[b] for a, b in pairs}
    return {pair: chance for pair, chance in law.items() if chance}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", DRAFTERS)
def test_two_consecutive_tokens_have_the_targets_joint_law(name: str, schedule: tuple[int, ...]) -> None:
    """For any drafter and any schedule; equality of rationals, no tolerance."""
    assert _committed_pairs(DRAFTERS[name], schedule, service_rule) == _target_pairs()


def test_the_enumeration_catches_a_rule_that_commits_its_draft() -> None:
    def keeps_draft(draft: Prefix, samples: Prefix) -> Prefix:
        return (draft[0],) if draft else samples[:1]

    assert _committed_pairs(DRAFTERS["uniform"], (1, 1), keeps_draft) != _target_pairs()


def test_the_enumeration_catches_accepting_without_looking_at_the_earlier_token() -> None:
    """The bug of comparing position by position: a later match commits although an earlier draft was wrong."""

    def skips(draft: Prefix, samples: Prefix) -> Prefix:
        return samples[:2] if len(draft) > 1 and draft[1] == samples[1] else service_rule(draft, samples)

    assert _committed_pairs(DRAFTERS["opposite"], (2, 2), skips) != _target_pairs()


def test_the_enumeration_catches_a_fresh_draw_after_a_mismatch() -> None:
    """Accept-if-equal must commit the compared sample on a mismatch; avoiding the refuted draft is biased."""

    def avoids_draft(draft: Prefix, samples: Prefix) -> Prefix:
        committed = service_rule(draft, samples)
        missed = len(committed) <= len(draft) and committed[-1] != draft[len(committed) - 1]
        return (*committed[:-1], max(committed[-1], 1)) if missed else committed

    assert _committed_pairs(DRAFTERS["uniform"], (1, 0), avoids_draft) != _target_pairs()
