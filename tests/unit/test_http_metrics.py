"""The metrics on an answer, by the checks of the benchmark that reads them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.router.http_metrics import Models, record, speculative_decoding
from paceline.router.ingress_fake import ROUNDS, STOPPED, Round, ScriptedRouter
from paceline.router.requests import Committed, Completed, Request, Started
from paceline.speculation.messages import RoundStats


def check(metrics: dict[str, Any]) -> None:
    """What aiperf checks before it believes a record."""
    histogram, steps = metrics["acceptance_histogram"], metrics["num_spec_steps"]
    accepted, drafted = metrics["per_step_accepted"], metrics["per_step_drafted"]
    assert all(type(count) is int and count >= 0 for count in histogram)
    assert len(histogram) == metrics["num_spec_tokens"] + 1
    assert sum(histogram) == steps == len(accepted) == len(drafted)
    assert sum(j * count for j, count in enumerate(histogram)) == metrics["num_accepted_draft_tokens"] == sum(accepted)
    assert metrics["num_draft_tokens"] == sum(drafted)
    assert all(a <= d for a, d in zip(accepted, drafted, strict=True))
    assert isinstance(metrics["mean_acceptance_length"], float)
    assert isinstance(metrics["draft_acceptance_rate"], float)


def stats_of(rounds: list[tuple[int, int]]) -> RoundStats:
    stats = RoundStats()
    for verified, accepted in rounds:
        stats.add(Round("x", verified, verified, min(accepted, verified)).verdict(), verified, missed=False)
    return stats


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=12))
def test_any_answer_passes_the_readers_checks(rounds: list[tuple[int, int]]) -> None:
    stats = stats_of(rounds)
    metrics = speculative_decoding(stats)
    check(metrics)
    if stats.tau is not None:
        assert metrics["mean_acceptance_length"] == pytest.approx(stats.tau)


def test_an_answer_without_drafts_has_zeros() -> None:
    metrics = speculative_decoding(stats_of([(0, 0), (0, 0)]))
    check(metrics)
    assert (metrics["num_spec_steps"], metrics["acceptance_histogram"]) == (0, [0])
    assert (metrics["mean_acceptance_length"], metrics["draft_acceptance_rate"]) == (1.0, 0.0)


async def test_our_record_tells_drafted_from_verified() -> None:
    models = Models()
    started: Started | None = None
    async for event in ScriptedRouter().generate(Request(request_id="r", text="x")):
        if isinstance(event, Started):
            started = event
        elif isinstance(event, Committed):
            models.add(event)
    assert isinstance(event, Completed)
    assert started is not None
    ours = record(started, event, models)
    assert (ours["drafted"], ours["verified"], ours["accepted"]) == (9, 8, 5)
    assert ours["acceptance_over_drafted"] == pytest.approx(5 / 9)
    assert ours["acceptance_over_verified"] == pytest.approx(5 / 8)
    assert ours["tau"] == pytest.approx(8 / 3)
    assert ours["committed_per_round"] == pytest.approx(9 / 4)
    assert ours["tokens"] == {"accepted": 5, "corrected": 2, "bonus": 1, "target_only": 1}
    assert ours["rounds"] == len(ROUNDS)
    assert ours["models"] == {"verifiers": ["fake"], "proposers": ["ngram"], "drafters": ["ngram"]}
    assert ours["waits_us"] == {"draft": 10, "verify": 20, "router": 30, "network": 40}
    assert ours["finish"] == {"reason": "stop", "stop_token_id": 2, "stop_string": None}
    assert (ours["request_id"], ours["seed"], ours["numerics_class"]) == ("r", 7, "c" * 64)


def test_ratios_without_a_denominator_are_null() -> None:
    started = Started("r", "s", "m", "f", "c", (1,), 0, 1)
    ours = record(started, Completed(STOPPED, 1, 0), Models())
    names = ("tau", "committed_per_round", "acceptance_over_drafted", "acceptance_over_verified")
    assert [ours[name] for name in names] == [None] * 4
