"""Which part of a round's text gets which colour."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.cli.paint import Painter, legend, split, use_color
from paceline_client import Chunk, Token, TokenSource

A, C, B, T, U = (
    TokenSource.ACCEPTED,
    TokenSource.CORRECTED,
    TokenSource.BONUS,
    TokenSource.TARGET_ONLY,
    TokenSource.UNKNOWN,
)


@pytest.mark.parametrize(
    ("text", "sources", "pieces"),
    [
        (" the quick brown", [A, A, C], [(" the quick", A), (" brown", C)]),
        ("One", [T], [("One", T)]),
        (" all of it", [A, A, A], [(" all of it", A)]),
        (" a bb unbelievable", [A, A, A, A, B], [(" a bb", A), (" unbelievable", B)]),  # words ≠ tokens: estimated
        ("abcd", [A, A, A, C], [("abc", A), ("d", C)]),
        (" ", [A, C], [(" ", C)]),
        ("", [A], []),
        ("late", [], [("late", U)]),
    ],
)
def test_split(text: str, sources: list[TokenSource], pieces: list[tuple[str, TokenSource]]) -> None:
    assert split(text, sources) == pieces


@given(st.text(max_size=40), st.lists(st.sampled_from([A, C, B, T]), max_size=12))
def test_no_character_is_lost_and_the_order_of_sources_is_kept(text: str, sources: list[TokenSource]) -> None:
    pieces = split(text, sources)
    assert "".join(piece for piece, _ in pieces) == text
    remaining = iter(sources)
    assert all(source in remaining for _, source in pieces if source is not U)


def _chunk(index: int, text: str, *sources: TokenSource) -> Chunk:
    made = tuple(Token(0, index + each, source, None, "m", 1, "") for each, source in enumerate(sources))
    return Chunk(index, made, text, 1, "", 0, 0, 0)


def test_text_held_back_is_shared_out_when_it_comes() -> None:
    painter = Painter(color=True)
    assert list(painter.pieces(_chunk(0, "", T))) == []
    assert list(painter.pieces(_chunk(1, "one two", B))) == [("one", T), (" two", B)]


def test_plain_text_is_untouched() -> None:
    assert Painter(color=False).paint(_chunk(0, "\x1b[1m as it came", A)) == "\x1b[1m as it came"


@pytest.mark.parametrize(
    ("terminal", "wanted", "environ", "colored"),
    [
        (True, True, {}, True),
        (False, True, {}, False),
        (True, False, {}, False),
        (True, True, {"NO_COLOR": "1"}, False),
        (True, True, {"NO_COLOR": ""}, True),  # as no-color.org says
        (True, True, {"TERM": "dumb"}, False),
    ],
)
def test_use_color(terminal: bool, wanted: bool, environ: dict[str, str], colored: bool) -> None:
    assert use_color(terminal=terminal, wanted=wanted, environ=environ) is colored


def test_the_legend_names_every_source() -> None:
    assert all(word in legend() for word in ("accepted draft", "corrected", "bonus", "target only"))
