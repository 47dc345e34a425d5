"""The ngram drafter against a naive implementation of its definition."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.drafters.interface import Ask
from paceline.drafters.ngram import NgramDrafter, NgramIndex
from paceline.speculation.errors import InvalidRequest

from tests.unit.draft_kit import session


def naive(tokens: list[int], count: int, low: int, high: int, window: int = 10**9) -> list[int]:
    length = len(tokens)
    for n in range(high, low - 1, -1):
        for end in range(length - 1, n - 1, -1):
            if end > length - 1 - window and n < length and tokens[end - n : end] == tokens[length - n :]:
                written = list(tokens)
                for source in range(end, end + count):
                    written.append(written[source])
                return written[length:]
    return []


def propose(drafter: NgramDrafter, tokens: list[int], count: int, session_id: str = "s") -> list[int]:
    (proposal,) = drafter.propose([Ask(session_id, len(tokens), count)])
    assert (proposal.drafter, proposal.proposer_model_id, proposal.confidence) == ("ngram", "ngram", ())
    return list(proposal.tokens)


@settings(deadline=None)
@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=80),
    cuts=st.lists(st.integers(1, 80), max_size=6),
    span=st.tuples(st.integers(1, 3), st.integers(0, 3)).map(lambda pair: (pair[0], sum(pair))),
    count=st.integers(1, 12),
    window=st.sampled_from([8, 20, 1000]),
)
def test_proposes_what_the_naive_search_finds_however_the_text_grew(
    tokens: list[int], cuts: list[int], span: tuple[int, int], count: int, window: int
) -> None:
    drafter = NgramDrafter(*span, window=window)
    held = session(tokens=tokens[:1])
    drafter.open(held)
    for length in sorted({1, *(cut for cut in cuts if cut < len(tokens)), len(tokens)}):
        held.tokens.extend(tokens[len(held.tokens) : length])
        assert propose(drafter, held.tokens, count) == naive(held.tokens, count, *span, window)


def test_a_repeating_pattern_goes_on_from_its_own_draft() -> None:
    drafter = NgramDrafter(2, 5)
    drafter.open(session(tokens=[9, 1, 2, 1, 2]))
    assert propose(drafter, [9, 1, 2, 1, 2], 7) == [1, 2, 1, 2, 1, 2, 1]


def test_the_longest_suffix_wins_then_the_latest_occurrence() -> None:
    drafter = NgramDrafter(1, 3)
    longest = [1, 2, 3, 70, 3, 80, 1, 2, 3]
    drafter.open(session(tokens=longest))
    assert propose(drafter, longest, 1) == [70]
    latest = [1, 2, 70, 1, 2, 80, 1, 2]
    drafter.open(session(tokens=latest))
    assert propose(drafter, latest, 1) == [80]


def test_nothing_that_repeats_means_no_draft() -> None:
    drafter = NgramDrafter(2, 5)
    drafter.open(session(tokens=[1, 2, 3, 4]))
    assert propose(drafter, [1, 2, 3, 4], 4) == []


def test_tokens_beyond_the_base_are_not_looked_at() -> None:
    drafter = NgramDrafter(2, 5)
    held = session(tokens=[1, 2, 3, 1, 2])
    drafter.open(held)
    held.tokens.extend([50, 60])  # appended by the worker meanwhile
    assert drafter.propose([Ask("s", 5, 2)])[0].tokens == (3, 1)


def test_memory_is_bounded_by_the_window() -> None:
    index = NgramIndex(2, 4, window=50)
    tokens = list(range(5000))
    index.extend(tokens, 5000)
    assert index.entries == 3 * 50


def test_the_least_recently_used_index_goes_first_and_comes_back() -> None:
    drafter = NgramDrafter(2, 3, window=100, total=150)
    tokens = [*range(60), 0, 1]
    for name in ("a", "b", "c"):
        drafter.open(session(name, tokens))
        assert propose(drafter, tokens, 2, name) == [2, 3]
    assert list(drafter._indexes) == ["b", "c"]
    assert drafter._indexed == 124
    assert propose(drafter, tokens, 2, "a") == [2, 3]
    for name in ("a", "b", "c"):
        drafter.close(name)
    assert drafter._indexed == 0


def test_a_long_prompt_is_taken_in_over_several_calls() -> None:
    drafter = NgramDrafter(2, 3, catch_up=40)
    tokens = [*range(90), 0, 1]
    drafter.open(session("long", tokens))
    answers = [propose(drafter, tokens, 2, "long") for _ in range(3)]
    assert answers == [[], [], [2, 3]]


def test_reopening_forgets_the_old_text() -> None:
    drafter = NgramDrafter(2, 3)
    drafter.open(session(tokens=[1, 2, 3, 1, 2]))
    assert propose(drafter, [1, 2, 3, 1, 2], 1) == [3]
    drafter.open(session(tokens=[1, 2, 4, 1, 2]))
    assert propose(drafter, [1, 2, 4, 1, 2], 1) == [4]


def test_lengths_are_checked() -> None:
    with pytest.raises(InvalidRequest, match=r"ngram_min: expected 1 to ngram_max \(2\), got 3"):
        NgramDrafter(3, 2)
