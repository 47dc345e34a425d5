"""Stop strings: the matcher against a search of the whole text, in every cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.speculation.stops import StopMatcher


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Text before the stop string that is complete first, and which it is (the longest of several)."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            stop = max(ended, key=len)
            return text[: end - len(stop)], stop
    return text, None


def feed_all(matcher: StopMatcher, pieces: list[str]) -> str:
    out = ""
    for piece in pieces:
        out += matcher.feed(piece)
        if matcher.stopped_by is not None:
            return out
    return out + matcher.flush()


words = st.text("abc", max_size=12)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


@given(st.lists(words, max_size=8), stop_lists)
def test_every_cut_gives_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    assert (feed_all(matcher, pieces), matcher.stopped_by) == naive("".join(pieces), stops)


@given(st.lists(words, max_size=8), stop_lists)
def test_what_is_held_is_the_least_that_has_to_be(pieces: list[str], stops: list[str]) -> None:
    matcher, text = StopMatcher(stops), ""
    for piece in pieces:
        matcher.feed(piece)
        text += piece
        if matcher.stopped_by is not None:
            assert matcher.held == ""
            return
        beginnings = {stop[:n] for stop in stops for n in range(1, len(stop))}
        held = max((b for b in beginnings if text.endswith(b)), key=len, default="")
        assert matcher.held == held


def test_a_stop_string_inside_a_longer_one_ends_the_answer_first() -> None:
    matcher = StopMatcher(["abcd", "bc"])
    assert matcher.feed("xabcd") == "xa"
    assert matcher.stopped_by == "bc"


def test_the_longest_of_those_that_end_together_counts() -> None:
    matcher = StopMatcher(["c", "abc"])
    assert matcher.feed("xab") == "x"
    assert matcher.feed("c") == ""
    assert matcher.stopped_by == "abc"


def test_text_after_the_stop_string_is_never_given_out() -> None:
    matcher = StopMatcher(["\n\n"])
    assert matcher.feed("one\n") == "one"
    assert matcher.feed("\ntwo") == ""


def test_without_stop_strings_nothing_is_held() -> None:
    matcher = StopMatcher([])
    assert matcher.feed("text") == "text"
    assert matcher.flush() == ""


def test_feeding_on_and_empty_stop_strings_are_bugs() -> None:
    with pytest.raises(AssertionError):
        StopMatcher([""])
    matcher = StopMatcher(["a"])
    matcher.feed("a")
    with pytest.raises(AssertionError):
        matcher.feed("b")
