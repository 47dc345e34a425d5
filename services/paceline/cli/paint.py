"""Which part of an answer came from whom, in colour.

A round's text arrives in one piece, while its tokens may have different sources. With as many words as tokens each
token is a word; otherwise where one source ends and the next begins is estimated from the share of tokens, at a
word's beginning. Counts (the closing line, ``--json``) never depend on it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import click
from paceline_client import Chunk, TokenSource

COLORS: dict[TokenSource, str] = {
    TokenSource.ACCEPTED: "green",
    TokenSource.CORRECTED: "yellow",
    TokenSource.BONUS: "cyan",
    TokenSource.TARGET_ONLY: "magenta",
}
_LABELS = {
    TokenSource.ACCEPTED: "accepted draft",
    TokenSource.CORRECTED: "corrected",
    TokenSource.BONUS: "bonus",
    TokenSource.TARGET_ONLY: "target only",
}
_WORD = re.compile(r"\s*\S+|\s+")

Piece = tuple[str, TokenSource]


def use_color(*, terminal: bool, wanted: bool, environ: Mapping[str, str]) -> bool:
    """Colour on a terminal only, unless --no-color, NO_COLOR (https://no-color.org) or a dumb terminal forbid it."""
    return terminal and wanted and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def split(text: str, sources: Sequence[TokenSource]) -> list[Piece]:
    """Share a text out to the sources of its tokens; the pieces joined are the text."""
    if not text or not sources:
        return [(text, TokenSource.UNKNOWN)] if text else []
    starts = list(itertools.accumulate((len(word) for word in _WORD.findall(text)), initial=0))[:-1]
    pieces: list[Piece] = []
    begin = done = 0
    for source, run in itertools.groupby(sources):
        done += len(list(run))
        last = done == len(sources)
        end = len(text) if last else _boundary(len(text), starts, begin, done, len(sources))
        if end > begin:
            pieces.append((text[begin:end], source))
        begin = end
    return pieces


def _boundary(length: int, starts: Sequence[int], begin: int, done: int, total: int) -> int:
    """Where the first ``done`` of ``total`` tokens end."""
    if len(starts) == total:
        return starts[done]
    wanted = round(length * done / total)
    inside = [start for start in starts if begin < start]
    return min(inside, key=lambda start: abs(start - wanted)) if inside else max(begin, wanted)


class Painter:
    """Turns an answer's chunks into pieces to print."""

    def __init__(self, *, color: bool) -> None:
        self.color = color
        self._waiting: list[TokenSource] = []  # of tokens whose text is still held back by the server

    def paint(self, chunk: Chunk) -> str:
        """A chunk's text, styled."""
        if not self.color:
            return chunk.text
        return "".join(_style(text, source) for text, source in self.pieces(chunk))

    def pieces(self, chunk: Chunk) -> Iterator[Piece]:
        """A chunk's text by source."""
        self._waiting += [token.source for token in chunk.tokens]
        if chunk.text:
            yield from split(chunk.text, self._waiting)
            self._waiting = []


def legend() -> str:
    """What the colours mean, in the colours."""
    return " · ".join(_style(label, source) for source, label in _LABELS.items())


def _style(text: str, source: TokenSource) -> str:
    color = COLORS.get(source)
    return click.style(text, fg=color) if color else text
