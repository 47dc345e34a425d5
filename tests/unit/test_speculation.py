"""Parameters, digests, acceptance and totals."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.speculation.acceptance import agree
from paceline.speculation.digest import PrefixDigest
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import RoundStats, TokenSource, Verdict
from paceline.speculation.params import SamplingParams, SpeculationMode, SpeculationParams, VerificationMode

WRONG = [
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", -0.1),
    ("temperature", "warm"),
    ("temperature", True),
    ("top_k", -1),
    ("top_k", 1.5),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("min_p", -0.5),
    ("seed", -1),
    ("seed", 2**64),
    ("max_tokens", 0),
    ("stop", ("",)),
    ("stop", ("x" * 257,)),
    ("stop", tuple("abcdefghijklmnopq")),
    ("stop_token_ids", (-1,)),
    ("stop_token_ids", tuple(range(65))),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_wrong_parameter_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: expected ") as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field


def test_drafts_are_judged_by_their_distributions_only_where_there_are_any() -> None:
    assert SamplingParams(verification_mode=VerificationMode.REJECTION).rejects
    assert not SamplingParams(verification_mode=VerificationMode.REJECTION, temperature=0).rejects
    assert not SamplingParams().rejects


def test_relaxed_acceptance_is_for_agreement_mode() -> None:
    assert SamplingParams(relaxed_acceptance=1).relaxed_acceptance == 1
    with pytest.raises(InvalidRequest, match="relaxed_acceptance: expected verification_mode agreement"):
        SamplingParams(relaxed_acceptance=0.5, verification_mode=VerificationMode.REJECTION)


def test_fixed_speculation_needs_a_length() -> None:
    with pytest.raises(InvalidRequest, match="max_draft_tokens"):
        SpeculationParams(mode=SpeculationMode.FIXED)
    with pytest.raises(InvalidRequest, match="max_draft_tokens"):
        SpeculationParams(max_draft_tokens=65)
    with pytest.raises(InvalidRequest, match="drafter"):
        SpeculationParams(drafter="d" * 65)


@given(st.lists(st.integers(0, 2**32 - 1)), st.data())
def test_a_digest_does_not_depend_on_how_tokens_arrived(tokens: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(tokens)))
    digest = PrefixDigest(tokens[:cut])
    assert digest.value == PrefixDigest(tokens[:cut]).value
    digest.extend(tokens[cut:])
    assert digest.value == PrefixDigest(tokens).value


def test_digests_tell_prefixes_apart() -> None:
    values = [PrefixDigest(tokens).value for tokens in ([], [0], [0, 0], [1], [256], [1, 0])]
    assert len(set(values)) == len(values)


ACCEPTED, CORRECTED = TokenSource.ACCEPTED, TokenSource.CORRECTED


@pytest.mark.parametrize(
    ("draft", "samples", "tokens", "sources"),
    [
        ([], [7], (7,), (TokenSource.TARGET_ONLY,)),
        ([7], [7, 8], (7, 8), (ACCEPTED, TokenSource.BONUS)),
        ([7], [9, 8], (9,), (CORRECTED,)),
        ([1, 2, 3], [1, 2, 4, 5], (1, 2, 4), (ACCEPTED, ACCEPTED, CORRECTED)),
        ([1, 2, 3], [4, 2, 3, 5], (4,), (CORRECTED,)),
        ([1, 2], [1, 2, 3], (1, 2, 3), (ACCEPTED, ACCEPTED, TokenSource.BONUS)),
    ],
)
def test_agreement(
    draft: list[int], samples: list[int], tokens: tuple[int, ...], sources: tuple[TokenSource, ...]
) -> None:
    agreement = agree(draft, samples)
    assert (agreement.tokens, agreement.sources) == (tokens, sources)
    assert agreement.accepted == sources.count(ACCEPTED)


def test_agreement_wants_one_sample_more_than_drafts() -> None:
    with pytest.raises(ValueError, match="one more"):
        agree([1], [1])


def test_totals_follow_the_definitions() -> None:
    stats = RoundStats()
    assert stats.tau is None
    assert stats.acceptance_rate is None
    stats.add(Verdict((1,), (TokenSource.TARGET_ONLY,), 0, 0), drafted=0, missed=True)
    stats.add(Verdict((1, 2, 3), (ACCEPTED, ACCEPTED, CORRECTED), 4, 2), drafted=5, missed=False)
    stats.add(Verdict((1, 2), (ACCEPTED, TokenSource.BONUS), 1, 1), drafted=1, missed=False)
    assert (stats.rounds, stats.drafted, stats.verified, stats.accepted) == (3, 6, 5, 3)
    assert stats.missed_drafts == 1
    assert stats.committed == 6
    assert stats.tau == 2.5  # five tokens in the two rounds with drafts
    assert stats.acceptance_rate == 0.6
