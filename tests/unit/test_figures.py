"""Figures of rounds, and whether confidences mean what they say."""

from __future__ import annotations

import random

import pytest
from paceline.speculation.calibration import BINS, ece, error, scaled, survivals, temperatures
from paceline.speculation.figures import Figures, RoundSeen, mean


def seen(accepted: int, verified: int = 4, *, confidence: tuple[float, ...] = ()) -> RoundSeen:
    return RoundSeen(verified, verified, accepted, accepted + 1, "d", confidence)


def test_figures_are_those_of_the_definitions() -> None:
    figures = Figures([seen(4), seen(0), seen(1, 2), RoundSeen(3, 0, 0, 1), RoundSeen(0, 0, 0, 1)])
    assert figures.tau == pytest.approx((5 + 1 + 2) / 3)
    assert figures.committed_per_step == pytest.approx(10 / 5)
    assert figures.over_verified == pytest.approx(5 / 10)
    assert figures.over_drafted == pytest.approx(5 / 13)
    assert figures.acceptance() == pytest.approx((2 / 3, 1 / 2, 1, 1))
    assert [figures.at_stake(position) for position in range(4)] == [3, 2, 1, 1]
    assert figures.survival() == pytest.approx((2 / 3, 1 / 3, 1 / 3, 1 / 3))


def test_nothing_drafted_has_no_ratios() -> None:
    figures = Figures([RoundSeen(0, 0, 0, 1)])
    assert (figures.tau, figures.over_drafted, figures.over_verified) == (None, None, None)
    assert figures.committed_per_step == 1
    assert figures.acceptance() == ()
    assert Figures([]).committed_per_step is None
    assert mean([None, 1.0, 3.0]) == 2
    assert mean([None]) is None


def test_calibration_error_is_the_distance_of_estimates_from_frequencies() -> None:
    assert ece([]) is None
    assert ece([(0.75, True), (0.75, True), (0.75, True), (0.75, False)]) == pytest.approx(0)
    assert ece([(0.95, False), (0.05, True)]) == pytest.approx(0.95)
    assert ece([(1.0, True)] * BINS) == pytest.approx(0)


def test_a_temperature_scales_the_logit() -> None:
    assert scaled(0.5, 3.0) == pytest.approx(0.5)
    assert scaled(0.9, 1.0) == pytest.approx(0.9)
    assert 0.5 < scaled(0.9, 2.0) < 0.9 < scaled(0.9, 0.5) < 1
    assert 0 < scaled(0.0, 1.0) < scaled(1.0, 1.0) < 1


def test_what_was_not_verified_is_left_out_and_what_follows_a_rejection_did_not_survive() -> None:
    rounds = [
        seen(0, 2, confidence=(0.8, 0.5)),
        seen(1, 1, confidence=(0.6,)),
        seen(1, 1),
    ]
    assert survivals(rounds, 0, ()) == [(0.8, False), (0.6, True)]
    ((estimate, survived),) = survivals(rounds, 1, ())
    assert (round(estimate, 6), survived) == (0.4, False)


def rounds_of(rng: random.Random, truth: tuple[float, ...], told: tuple[float, ...], count: int) -> list[RoundSeen]:
    """Drafts accepted by chances spread about ``truth``, whose logits confidences tell divided by ``told``."""
    rounds = []
    for _ in range(count):
        spread = rng.gauss(0, 1.0)
        chances = [scaled(1 / (1 + (1 - p) / p * 2.718**-spread), 1.0) for p in truth]
        confidence = tuple(scaled(chance, t) for chance, t in zip(chances, told, strict=True))
        accepted = 0
        while accepted < len(truth) and rng.random() < chances[accepted]:
            accepted += 1
        rounds.append(seen(accepted, len(truth), confidence=confidence))
    return rounds


def test_sequential_temperatures_undo_what_made_confidences_too_sure() -> None:
    rng = random.Random(11)
    truth, wrong = (0.8, 0.6, 0.7), (0.5, 0.4, 1.0)
    fitted = temperatures(rounds_of(rng, truth, wrong, 4000))
    assert fitted == pytest.approx([1 / t for t in wrong], rel=0.25)
    fresh = rounds_of(rng, truth, wrong, 4000)
    before, after = error(fresh), error(fresh, fitted)
    assert before is not None
    assert after is not None
    assert after < 0.03 < before


def test_too_few_rounds_change_nothing() -> None:
    assert temperatures([seen(0, 2, confidence=(0.99, 0.99))] * 5) == (1.0, 1.0)
    assert temperatures([]) == ()
