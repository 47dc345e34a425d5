"""Claims about the shared-noise coupling, one test each, in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.theorems.coupling import Distribution, coupling, total_variation


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Distribution, Distribution]:
    size = draw(st.integers(2, 5))
    row = st.lists(st.integers(0, 20), min_size=size, max_size=size).filter(any)
    first, second = draw(row), draw(row)
    return _normalised(first), _normalised(second)


def _normalised(counts: list[int]) -> Distribution:
    return tuple(Fraction(count, sum(counts)) for count in counts)


@given(pairs())
def test_target_draws_from_its_own_distribution(
    pair: tuple[Distribution, Distribution],
) -> None:
    """arXiv 2408.07978, section 3: the marginal of the target's token does not depend on q."""
    q, p = pair
    joint = coupling(q, p)
    assert tuple(sum(row[j] for row in joint) for j in range(len(p))) == p
    assert tuple(sum(row) for row in joint) == q


@given(pairs())
def test_agreement_is_at_least_one_minus_tv_over_one_plus_tv(pair: tuple[Distribution, Distribution]) -> None:
    """arXiv 2408.07978, theorem on Gumbel coupling: P(agree) >= (1 - TV) / (1 + TV); optimal coupling has 1 - TV."""
    q, p = pair
    joint = coupling(q, p)
    agree = sum(joint[i][i] for i in range(len(p)))
    tv = total_variation(q, p)
    assert (1 - tv) / (1 + tv) <= agree <= 1 - tv


def test_equal_distributions_always_agree() -> None:
    p = _normalised([3, 1, 4, 1, 5])
    joint = coupling(p, p)
    assert [joint[i][i] for i in range(5)] == list(p)


@pytest.mark.parametrize(("q", "p"), [((1, 0), (0, 1)), ((1, 0, 0), (0, 1, 1))])
def test_disjoint_distributions_never_agree(q: tuple[int, ...], p: tuple[int, ...]) -> None:
    joint = coupling(_normalised(list(q)), _normalised(list(p)))
    assert all(joint[i][i] == 0 for i in range(len(p)))
