"""Estimates of how far drafts get, and of what steps and drafts cost."""

from __future__ import annotations

import math
import random

import pytest
from paceline.speculation.cost import CostCurve, DraftTimes
from paceline.speculation.survival import Guess, Survival


def survival(memory: float = 1e9, weight: float = 1e-9) -> Survival:
    return Survival(Guess(0.5), weight=weight, memory=memory)


def test_before_anything_was_seen_the_prior_is_expected() -> None:
    fresh = Survival(Guess(0.5, 0.8), weight=4, memory=20)
    assert fresh.gains(3) == pytest.approx([0, 0.5, 0.75, 0.875])
    assert fresh.lengths(2) == pytest.approx([0, 0.8, 0.8 + 0.64])


def test_what_lies_after_the_first_rejection_is_not_counted() -> None:
    seen = survival()
    for accepted in (0, 0, 2, 4):
        seen.add(asked=4, drafted=4, verified=4, accepted=accepted)
    assert [seen.accepted(position) for position in range(4)] == pytest.approx([0.5, 1, 0.5, 1])


def test_clipped_proposals_do_not_make_the_position_after_them_look_bad() -> None:
    seen = survival()
    seen.add(asked=4, drafted=4, verified=2, accepted=2)
    seen.add(asked=2, drafted=2, verified=2, accepted=2)
    seen.add(asked=4, drafted=4, verified=4, accepted=3)
    assert [seen.accepted(position) for position in range(4)] == pytest.approx([1, 1, 1, 0], abs=1e-6)


def test_a_proposal_that_ends_early_gains_nothing_there_and_costs_nothing() -> None:
    seen = survival()
    seen.add(asked=4, drafted=0, verified=0, accepted=0)
    seen.add(asked=4, drafted=2, verified=2, accepted=2)
    assert seen.gains(4) == pytest.approx([0, 0.5, 1, 1, 1])
    assert seen.lengths(4) == pytest.approx([0, 0.5, 1, 1, 1])


def test_an_estimate_from_censored_rounds_finds_the_truth() -> None:
    rng = random.Random(5)
    chances = (0.8, 0.6, 0.7, 0.3)
    seen = survival()
    for _ in range(20_000):
        asked = rng.randint(1, 4)
        verified = rng.randint(1, asked)
        accepted = 0
        while accepted < verified and rng.random() < chances[accepted]:
            accepted += 1
        seen.add(asked=asked, drafted=asked, verified=verified, accepted=accepted)
    assert [seen.accepted(position) for position in range(4)] == pytest.approx(list(chances), abs=0.03)


def test_old_proposals_fade() -> None:
    seen = Survival(Guess(0.5), weight=1, memory=10)
    for _ in range(50):
        seen.add(asked=1, drafted=1, verified=1, accepted=1)
    assert seen.accepted(0) > 0.9
    for _ in range(20):
        seen.add(asked=1, drafted=1, verified=1, accepted=0)
    assert seen.accepted(0) < 0.25
    seen.fade(1000)
    assert seen.accepted(0) == pytest.approx(0.5)


def test_a_curve_measured_while_the_machine_was_busy_never_falls() -> None:
    curve = CostCurve(((1, 0.024), (16, 0.021), (32, 0.05)))
    times = [curve.seconds(rows) for rows in range(1, 40)]
    assert times == sorted(times)
    assert curve.seconds(1) == pytest.approx(math.sqrt(0.024 * 0.021))


def test_steps_correct_the_shape_of_a_curve_though_the_machine_drifts() -> None:
    rng = random.Random(3)
    curve = CostCurve(((1, 0.02), (16, 0.02), (64, 0.06)))
    level = 0.01
    for step in range(600):
        level *= math.exp(rng.gauss(0, 0.02))
        rows = 1 if step % 3 else rng.choice((5, 7, 9))
        curve.observe(rows, level * (1 + 0.04 * (rows - 1)) * math.exp(rng.gauss(0, 0.05)))
    assert curve.seconds(8) / curve.seconds(1) == pytest.approx(1.28, abs=0.08)
    times = [curve.seconds(rows) for rows in range(1, 80)]
    assert times == sorted(times)


def test_draft_times_tell_what_each_token_costs_from_what_a_question_costs() -> None:
    times = DraftTimes()
    assert times.seconds(4) == 0
    times.add(8, 0.4)
    assert times.seconds(8) == pytest.approx(0.4, rel=0.1)
    assert times.seconds(2) < 0.2  # worth a try
    for k in (1, 2, 4, 8) * 10:
        times.add(k, 0.1 + 0.03 * k)
    for k in (1, 2, 4, 8):
        assert times.seconds(k) == pytest.approx(0.1 + 0.03 * k, rel=0.1)


def test_a_draft_held_up_once_is_not_expensive_for_ever() -> None:
    times = DraftTimes()
    for _ in range(20):
        times.add(4, 0.01)
    times.add(4, 10.0)
    assert times.seconds(4) < 0.013


@pytest.mark.parametrize("k", [1, 3, 8])
def test_draft_times_are_never_negative(k: int) -> None:
    times = DraftTimes()
    for asked, seconds in ((1, 0.3), (2, 0.2), (8, 0.1), (4, 0.0)):
        times.add(asked, seconds)
    assert times.seconds(k) >= 0
