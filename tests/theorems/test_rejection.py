"""Claims about rejection mode, one test each, in exact arithmetic; and wrong rules of the field, which fail them.

arXiv 2211.17192 (Leviathan, Kalman, Matias) and 2302.01318 (Chen et al.).
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.theorems.coupling import Distribution, coupling, total_variation
from tests.theorems.rejecting import (
    Joint,
    Model,
    Position,
    Prefix,
    committed,
    committed_pairs,
    kept,
    recovery,
    service,
    target_pairs,
)

UNITS = 16  # probabilities are sixteenths, which float64 holds exactly


def _of(*counts: int) -> Distribution:
    return tuple(Fraction(count, sum(counts)) for count in counts)


def _model(*tables: tuple[int, ...]) -> Model:
    """A language model of order 1: the first table starts, table 1 + t follows token t."""
    assert all(sum(table) == UNITS for table in tables), tables

    def distribution(prefix: Prefix) -> Distribution:
        return _of(*(tables[1 + prefix[-1]] if prefix else tables[0]))

    return distribution


TARGET = _model((8, 5, 3), (2, 2, 12), (9, 0, 7), (6, 6, 4))
DRAFTERS = {
    "identical": TARGET,
    "nearly uniform": _model(*[(5, 5, 6)] * 4),
    "opposite": _model((3, 5, 8), (14, 1, 1), (0, 12, 4), (4, 5, 7)),
    "point mass": _model((0, 0, 16), (16, 0, 0), (0, 16, 0), (0, 0, 16)),
    "truncated": _model((10, 6, 0), (0, 4, 12), (9, 0, 7), (3, 13, 0)),
}
SCHEDULES = list(product((0, 1, 2, 3), repeat=2))


@st.composite
def distributions(draw: st.DrawFn, size: int) -> Distribution:
    cuts = sorted(draw(st.lists(st.integers(0, UNITS), min_size=size - 1, max_size=size - 1)))
    return _of(*(b - a for a, b in zip([0, *cuts], [*cuts, UNITS], strict=True)))


pairs = st.integers(2, 5).flatmap(lambda size: st.tuples(distributions(size), distributions(size)))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", DRAFTERS)
def test_two_consecutive_tokens_have_the_targets_joint_law(name: str, schedule: tuple[int, ...]) -> None:
    """2211.17192, appendix A.1, and over rounds: for any drafter and any number of drafts."""
    assert committed_pairs(service, TARGET, DRAFTERS[name], schedule) == target_pairs(TARGET)


@given(pairs)
def test_the_committed_token_has_the_targets_law(pair: tuple[Distribution, Distribution]) -> None:
    """2211.17192, appendix A.1; 2302.01318, theorem 1."""
    p, q = pair
    assert committed(service(p, q), len(p)) == p


@given(pairs)
def test_a_draft_is_accepted_with_probability_one_minus_tv(pair: tuple[Distribution, Distribution]) -> None:
    """2211.17192, corollary 3.6."""
    p, q = pair
    joint = service(p, q)
    assert sum(joint.get((x, x), Fraction(0)) for x in range(len(p))) == 1 - total_variation(p, q)


@given(pairs)
def test_a_rejected_draft_is_never_drawn_again(pair: tuple[Distribution, Distribution]) -> None:
    """So that "equal to the draft" means "accepted", which is how the engine reports it."""
    p, q = pair
    for x, chance in enumerate(q):
        if chance and kept(p[x], chance) < 1:
            assert recovery(p, q)[x] == 0


def test_a_draft_the_target_has_no_row_for_is_rejected_in_place() -> None:
    """The drafter's vocabulary may be padded further than the target's."""
    p, q = _of(8, 5, 3), _of(4, 4, 4, 2, 2)
    joint = service(p, q)
    assert committed(joint, len(p)) == p
    assert not any(x == y for x, y in joint if x >= len(p))


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_schedule_may_look_at_earlier_drafts_and_at_the_shape_of_q(name: str) -> None:
    def unsure_or_after_an_end(before: Prefix, q: Distribution, draft: int) -> bool:
        return max(q) < Fraction(5, 8) or (bool(before) and before[-1] == 2)

    for schedule in SCHEDULES:
        law = committed_pairs(service, TARGET, DRAFTERS[name], schedule, unsure_or_after_an_end)
        assert law == target_pairs(TARGET)


# Wrong rules. Each is one change to the right one, and the same enumeration tells.


def _fails(position: Position, drafter: str = "nearly uniform") -> None:
    assert committed_pairs(position, TARGET, DRAFTERS[drafter], (1, 1)) != target_pairs(TARGET)


def test_caught_a_schedule_that_looks_at_the_draft() -> None:
    """Confidence rules that read the drawn token's own probability, or cut a draft off for what it is."""

    def unlikely(before: Prefix, q: Distribution, draft: int) -> bool:
        return q[draft] < Fraction(1, 2)

    law = committed_pairs(service, TARGET, DRAFTERS["opposite"], (2, 1), unlikely)
    assert law != target_pairs(TARGET)


def test_caught_cutting_a_forbidden_draft_off_instead_of_rejecting_it_in_place() -> None:
    """The numbers of DESIGN.md, section 3: p = (.5, .5, 0), q = (.6, .1, .3) would commit (.65, .35)."""
    p, q = _of(5, 5, 0), _of(6, 1, 3)

    def cut_off(p: Distribution, q: Distribution) -> Joint:
        joint = service(p, q)
        right = {(x, y): weight for (x, y), weight in joint.items() if p[x]}
        return right | {(x, y): chance * p[y] for x, chance in enumerate(q) if not p[x] for y in range(len(p))}

    assert committed(cut_off(p, q), 3) == (Fraction(65, 100), Fraction(35, 100), Fraction(0))
    in_place = _of(8, 8, 0), _of(10, 2, 4)
    assert committed(service(*in_place), 3) == in_place[0]
    assert committed(cut_off(*in_place), 3) != in_place[0]


# A rejected draft leaves two tokens, and q tells them apart: with one left there is nothing to get wrong.
LOPSIDED = _of(2, 9, 5), _of(12, 3, 1)


def _recovering(p: Distribution, q: Distribution, drawn: list[list[Fraction]]) -> Joint:
    """drawn[x][y]: probability that x is drafted and y is what would replace it."""
    joint = {(x, x): chance * kept(p[x], chance) for x, chance in enumerate(q) if chance}
    for x, chance in enumerate(q):
        for y, weight in enumerate(drawn[x]):
            if chance and weight:
                joint[x, y] = joint.get((x, y), Fraction(0)) + (1 - kept(p[x], chance)) * weight
    return joint


def test_caught_recovery_drawn_with_the_drafts_noise() -> None:
    """vLLM, pull request 47386: one exponential per token raced for the draft and again for the recovered token."""

    def reused(p: Distribution, q: Distribution) -> Joint:
        rest = recovery(p, q)
        return _recovering(p, q, coupling(q, rest)) if any(rest) else service(p, q)

    assert committed(reused(*LOPSIDED), 3) != LOPSIDED[0]
    assert committed(service(*LOPSIDED), 3) == LOPSIDED[0]


def test_caught_recovery_drawn_with_the_acceptances_noise() -> None:
    """One uniform both rejects the draft and, by inverse transform, picks what replaces it."""

    def shared(p: Distribution, q: Distribution) -> Joint:
        rest = recovery(p, q)
        joint: Joint = {}
        for x, chance in enumerate(q):
            if chance:
                keep, low = kept(p[x], chance), Fraction(0)
                joint[x, x] = joint.get((x, x), Fraction(0)) + chance * keep
                for y, weight in enumerate(rest):
                    inside = max(Fraction(0), low + weight - max(low, keep))
                    joint[x, y] = joint.get((x, y), Fraction(0)) + chance * inside
                    low += weight
        return joint

    assert committed(shared(*LOPSIDED), 3) != LOPSIDED[0]


def test_caught_recovery_drawn_from_the_target() -> None:
    """The residual's subtraction left out."""

    def unsubtracted(p: Distribution, q: Distribution) -> Joint:
        return _recovering(p, q, [[chance * weight for weight in p] for chance in q])

    _fails(unsubtracted)


def _judged_as(drawn_from: Distribution, p: Distribution, q: Distribution) -> Joint:
    """Drafts drawn from one distribution and judged as if from q."""
    joint: Joint = {}
    for (x, y), weight in service(p, q).items():
        joint[x, y] = weight / q[x] * drawn_from[x]
    return joint


@pytest.mark.parametrize("truncate", [1, 2], ids=["argmax", "top two"])
def test_caught_a_q_that_was_not_sampled_from(truncate: int) -> None:
    """transformers, issue 47932: drafts drawn from the processed distribution, the raw softmax sent as q."""

    def unsampled(p: Distribution, q: Distribution) -> Joint:
        least = sorted(q)[-truncate]
        weights = [weight if weight >= least else Fraction(0) for weight in q]
        drawn_from = tuple(weight / sum(weights) for weight in weights)
        return _judged_as(drawn_from, p, q)

    _fails(unsampled, "opposite")
