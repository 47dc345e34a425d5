"""Problems put together from parts: choose some elements, change them, and make one result of them.

The examples are computed by the parts themselves, so they are true whatever was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from paceline.training.prompts.mixing import lines
from paceline.training.prompts.parts import (
    INTEGER_CHANGES,
    INTEGER_RESULTS,
    INTEGERS,
    WORD_CHANGES,
    WORD_RESULTS,
    WORDS,
    Part,
)
from paceline.training.prompts.problems import Problem

_TRIES = 50  # draws of an input; nearly every draw will do


@dataclass(frozen=True, slots=True)
class Material:
    """What a pipeline works on."""

    parameters: tuple[str, ...]  # names to draw from
    kind: str  # of the parameter
    source: str  # in a sentence, after "of"
    plural: str  # of the elements
    elements: Callable[[Any], Sequence[Any]]
    draw: Callable[[Random], Any]
    chosen: tuple[Part, ...]
    changes: tuple[Part, ...]


def _integers(rng: Random) -> list[int]:
    low, high = rng.choice(((-20, 60), (-9, 9), (0, 30), (-99, 120)))
    return [rng.randint(low, high) for _ in range(rng.randint(3, 7))]


def _words(rng: Random) -> list[str]:
    return rng.sample(lines("vocabulary.txt"), rng.randint(2, 5))


def _stock(rng: Random) -> dict[str, int]:
    return {word: rng.randint(-5, 40) for word in _words(rng)}


_MATERIALS = (
    Material(
        ("numbers", "values", "nums", "readings", "scores"), "list[int]", "a list of integers", "numbers",
        list, _integers, INTEGERS, INTEGER_CHANGES,
    ),
    Material(
        ("n", "limit", "top"), "int", "the integers from -{0} up to and including {0}", "numbers",
        lambda n: range(-n, n + 1), lambda rng: rng.randint(5, 30), INTEGERS, INTEGER_CHANGES,
    ),
    Material(
        ("matrix", "rows", "table"), "list[list[int]]", "a list of lists of integers, read row by row", "numbers",
        lambda rows: [x for row in rows for x in row],
        lambda rng: [_integers(rng)[:3] for _ in range(rng.randint(1, 3))],
        INTEGERS, INTEGER_CHANGES,
    ),
    Material(
        ("text", "line", "numbers"), "str", "a string of integers separated by spaces", "numbers",
        lambda text: [int(x) for x in text.split()], lambda rng: " ".join(map(str, _integers(rng))),
        INTEGERS, INTEGER_CHANGES,
    ),
    Material(
        ("stock", "table", "balance"), "dict[str, int]", "a dictionary", "values",
        lambda table: list(table.values()), _stock, INTEGERS, INTEGER_CHANGES,
    ),
    Material(
        ("words", "names", "items", "labels"), "list[str]", "a list of non-empty words", "words",
        list, _words, WORDS, WORD_CHANGES,
    ),
    Material(
        ("sentence", "text", "phrase"), "str", "a sentence without punctuation", "words",
        str.split, lambda rng: " ".join(_words(rng)), WORDS, WORD_CHANGES,
    ),
    Material(
        ("stock", "ages", "table"), "dict[str, int]", "a dictionary", "keys",
        list, _stock, WORDS, WORD_CHANGES,
    ),
)  # fmt: skip

_SENTENCES = (
    "From {source}, take the {chosen}{change} and return {result}.",
    "Given {source}, pick the {chosen}{change}, and return {result}.",
    "Look at {source}. Take only the {chosen}{change}, and return {result}.",
    "In {source}, find the {chosen}{change}, then return {result}.",
    "You are given {source}. Select the {chosen}{change} and return {result}.",
)

_OTHER_NAMES = ("process_{}", "summarize_{}", "select_{}", "collect_{}", "filtered_{}", "report_{}", "reduce_{}")


def problem(rng: Random) -> Problem:
    """A problem drawn from all that the parts can make."""
    material = rng.choice(_MATERIALS)
    parameter = rng.choice(material.parameters)
    chosen, change = rng.choice(material.chosen), rng.choice(material.changes)
    numeric = isinstance(change.does(7 if material.chosen is INTEGERS else "word"), int)
    result, kind = rng.choice(INTEGER_RESULTS if numeric else WORD_RESULTS)

    def solve(given: Any) -> Any:
        return result.does([change.does(each) for each in material.elements(given) if chosen.does(each)])

    if rng.random() < 0.8:
        name = "_".join(filter(None, (result.name, change.name, chosen.name, material.plural)))
    else:
        name = rng.choice(_OTHER_NAMES).format(material.plural)
    said = rng.choice(_SENTENCES).format(
        chosen=chosen.said.format(material.plural),
        source=material.source.format(parameter),
        change=f", {change.said}" if change.said else "",
        result=result.said,
    )
    examples = [(f"{name}({given!r})", repr(solve(given))) for given in _inputs(rng, material, chosen)]
    if len(examples) < 2:
        return problem(rng)  # nothing of this material is ever chosen
    return Problem(name, ((parameter, material.kind),), kind, said, tuple(examples))


def _inputs(rng: Random, material: Material, chosen: Part) -> list[Any]:
    """Two or three inputs from which something is chosen."""
    wanted = rng.choice((2, 2, 3))
    found: list[Any] = []
    for _ in range(_TRIES):
        given = material.draw(rng)
        if given not in found and any(map(chosen.does, material.elements(given))):
            found.append(given)
        if len(found) == wanted:
            break
    return found
