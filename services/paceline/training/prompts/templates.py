"""Prompt templates: text with slots, numbers under constraints, and phrasings to choose between.

A template file holds blocks separated by blank lines; a line that starts with `#` is a comment. The lines of a block:

- `= a=3..12; b=5..50:5; k=2|4|8; c:=a*b; c<200` draws numbers (range, range with step, choice), computes others and
  states what must hold; draws are repeated until every condition does;
- `~ sentence`: neighbouring lines marked so come in any order;
- `? sentence`: of neighbouring lines marked so, one is taken;
- anything else is a sentence; sentences are joined by blanks, and `\\n` writes a new line.

In a sentence `[one|another|]` takes one phrasing, `{a}` writes a number, `{A}` a person, `{fruit}` or `{fruit2}` an
entry of the word list `fruit`, and a form may follow a dot (`{A.he}`, `{k.times}`, `{fruit.one}`; see `words.py`).
Entries may hold slots themselves. Everything is a pure function of the template and the random generator given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from paceline.training.prompts.arithmetic import Value, evaluate
from paceline.training.prompts.mixing import shuffled
from paceline.training.prompts.words import Words, article, number_form, numeral, person_form

_SLOT = re.compile(r"\{([A-Za-z][a-z_]*)(\d*)(?:\.(\w+))?\}")
_CHOICE = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
_DRAW = re.compile(r"([a-z])=(-?\d+)\.\.(-?\d+)(?::(\d+))?")
_PICK = re.compile(r"([a-z])=(-?\d+(?:\|-?\d+)*)")
_COMPUTE = re.compile(r"([a-z]):=(.+)")
_ATTEMPTS = 5_000
_DEPTH = 4

Draw = Callable[[Random, dict[str, Value]], bool]


@dataclass(frozen=True)
class Template:
    """One block of a template file: how to draw its numbers, and its sentences with their marks ('', '~' or '?')."""

    draws: tuple[Draw, ...]
    sentences: tuple[tuple[str, str], ...]

    def fill(self, rng: Random, words: Words, *, spell: bool = False) -> str:
        """The text with every slot filled; `spell` writes small plain numbers as words.

        ValueError when the numbers' conditions cannot be met or a slot names no list.
        """
        filling = _Filling(rng, words, self._numbers(rng), spell)
        parts = (filling.expand(sentence).strip(" ") for sentence in _arrange(self.sentences, rng))
        text = " ".join(part[:1].upper() + part[1:] for part in parts if part)
        return text.replace(".m..", ".m.").replace("\\n ", "\n").replace("\\n", "\n")

    def _numbers(self, rng: Random) -> dict[str, Value]:
        for _ in range(_ATTEMPTS):
            numbers: dict[str, Value] = {}
            if all(draw(rng, numbers) for draw in self.draws):
                return numbers
        raise ValueError(f"no numbers meet the conditions of the template {self.sentences[0][1]!r}")


def read_templates(text: str) -> list[Template]:
    """The templates of a file; ValueError when a block has no sentence."""
    kept = "\n".join(line.rstrip() for line in text.splitlines() if not line.startswith("#"))
    return [_template(block) for block in re.split(r"\n{2,}", kept.strip("\n"))]


def filled(rng: Random, templates: Sequence[Template], words: Words, *, spelled: float = 0.0) -> Iterator[str]:
    """Texts without end, the templates taking turns; the share `spelled` of them writes small numbers as words."""
    while True:
        for template in shuffled(rng, templates):
            yield template.fill(rng, words, spell=rng.random() < spelled)


def _template(block: str) -> Template:
    draws: list[Draw] = []
    sentences: list[tuple[str, str]] = []
    for line in block.splitlines():
        mark, rest = line[:2], line[2:]
        if mark == "= ":
            draws += [_draw(part.strip()) for part in rest.split(";")]
        else:
            sentences.append((mark[0], rest) if mark in ("~ ", "? ") else ("", line))
    if not sentences:
        raise ValueError(f"a template without a sentence: {block!r}")
    return Template(tuple(draws), tuple(sentences))


def _draw(part: str) -> Draw:
    if match := _DRAW.fullmatch(part):
        name, low, high, step = match[1], int(match[2]), int(match[3]), int(match[4] or 1)
        return lambda rng, numbers: _put(numbers, name, rng.randrange(low, high + 1, step))
    if match := _PICK.fullmatch(part):
        picked, values = match[1], [int(value) for value in match[2].split("|")]
        return lambda rng, numbers: _put(numbers, picked, rng.choice(values))
    if match := _COMPUTE.fullmatch(part):
        computed, formula = match[1], match[2]
        return lambda _, numbers: _put(numbers, computed, evaluate(formula, numbers))
    return lambda _, numbers: bool(evaluate(part, numbers))


def _put(numbers: dict[str, Value], name: str, value: Value) -> bool:
    numbers[name] = value
    return True


def _arrange(sentences: Sequence[tuple[str, str]], rng: Random) -> list[str]:
    arranged: list[str] = []
    start = 0
    while start < len(sentences):
        mark = sentences[start][0]
        end = start + 1
        while mark and end < len(sentences) and sentences[end][0] == mark:
            end += 1
        group = [text for _, text in sentences[start:end]]
        arranged += [rng.choice(group)] if mark == "?" else rng.sample(group, len(group))
        start = end
    return arranged


class _Filling:
    """What the slots of one text stand for: the same slot says the same thing everywhere, two slots never do."""

    def __init__(self, rng: Random, words: Words, numbers: dict[str, Value], spell: bool) -> None:
        self._rng = rng
        self._words = words
        self._numbers = numbers
        self._spell = spell
        self._bound: dict[str, str] = {}

    def expand(self, text: str, depth: int = 0) -> str:
        if depth > _DEPTH:
            raise ValueError(f"word lists refer to each other without end at {text!r}")
        while _CHOICE.search(text):
            text = _CHOICE.sub(lambda match: self._rng.choice(match[1].split("|")), text)
            text = re.sub(r" +(?= |[.,?;](?: |$))", "", text)  # what an empty phrasing leaves behind
        written: list[str] = []
        done = 0
        for match in _SLOT.finditer(text):
            written.append(text[done : match.start()])
            value = self._value(match, text, depth)
            written[-1] = article(written[-1], value)
            written.append(value[:1].upper() + value[1:] if _starts("".join(written)) else value)
            done = match.end()
        return "".join(written) + text[done:]

    def _value(self, match: re.Match[str], text: str, depth: int) -> str:
        name, index, form = match[1], match[2], match[3] or ""
        if name in self._numbers and not index:
            number = self._numbers[name]
            return number_form(number, form) if form else numeral(number, self._spell and _plain(text, match))
        if len(name) == 1 and name.isupper():
            return person_form(self._entry("person", name), form)
        return self.expand(self._words.form(self._entry(name, name + index), form), depth + 1)

    def _entry(self, listed: str, key: str) -> str:
        if key not in self._bound:
            taken = set(self._bound.values())
            self._bound[key] = self._words.draw(listed, self._rng, taken)
        return self._bound[key]


def _starts(before: str) -> bool:
    """Whether a sentence starts after this text (`a.m. ` ends none)."""
    return before.endswith((". ", "? ", "! ")) and not before.endswith(".m. ")


def _plain(text: str, match: re.Match[str]) -> bool:
    """A number among words, not part of a formula, a price or a measure written with a sign."""
    before, after = text[: match.start()], text[match.end() :]
    return (
        not before.endswith((*"$-+*/=(^:.€£#", " : "))
        and not after.startswith(" : ")
        and (not after or after[0] in " ,.?;-" or after.startswith("\\n"))
    )
