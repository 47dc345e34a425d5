"""What is known of lookups: how likely they are right, by how much text they had found again."""

from __future__ import annotations

import pytest
from paceline.drafters.evidence import MAX_PENDING, Evidence, Experience, bucket_of


def test_longer_agreement_is_better_evidence_before_anything_was_seen() -> None:
    evidence = Evidence(Experience())
    first = [evidence.chances(matched, 1)[0] for matched in (2, 3, 4, 6, 9, 17)]
    assert first == sorted(first)
    assert len(set(first)) == 6
    assert bucket_of(2) == 0
    assert bucket_of(32) == 5


def test_a_lookup_is_judged_by_the_text_that_followed_once_it_is_there() -> None:
    experience = Experience()
    evidence = Evidence(experience)
    text = [1, 2, 3, 4, 5]
    evidence.made(2, (3, 4, 9), matched=2)
    evidence.settle(text, 4)  # all there is agrees: not decided yet
    assert experience.buckets[0].accepted(0) == pytest.approx(0.3)
    evidence.settle(text, 5)
    assert experience.buckets[0].accepted(0) > 0.3
    assert experience.buckets[0].accepted(2) < 0.3
    evidence.settle(text, 5)
    assert evidence.chances(2, 1)[0] > experience.buckets[0].accepted(0)


def test_what_is_never_decided_is_forgotten() -> None:
    evidence = Evidence(Experience())
    for base in range(10 * MAX_PENDING):
        evidence.made(base, (1, 2), matched=3)
    evidence.settle([], 0)
    assert len(evidence._pending) == MAX_PENDING
