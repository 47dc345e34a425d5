"""Functions given by signature, docstring and examples: hand-written ones, and pipelines that are put together."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from random import Random

from paceline.training.prompts import Conversation, pipelines
from paceline.training.prompts.mixing import endless, mixed, shuffled, text
from paceline.training.prompts.problems import Problem, asked

_EXAMPLE = re.compile(r"^>>> (.*)\n(.*)$", re.MULTILINE)


def conversations(rng: Random) -> Iterator[Conversation]:
    """Conversations that each ask for one function, without end."""
    yield from mixed(rng, (3.0, _written(rng)), (2.0, endless(lambda: asked(rng, pipelines.problem(rng)))))


def _written(rng: Random) -> Iterator[Conversation]:
    while True:
        for problem in shuffled(rng, written_problems()):
            yield asked(rng, problem)


@cache
def written_problems() -> tuple[Problem, ...]:
    """The hand-written problems, whose solutions stand beside them in the resource but not in any prompt."""
    tree = ast.parse(text("functions.txt"))
    return tuple(_problem(node) for node in tree.body if isinstance(node, ast.FunctionDef))


def _problem(node: ast.FunctionDef) -> Problem:
    docstring = ast.get_docstring(node) or ""
    said, _, _ = docstring.partition(">>>")
    return Problem(
        node.name,
        tuple((each.arg, _written_type(each.annotation)) for each in node.args.args),
        _written_type(node.returns),
        " ".join(said.split()),
        tuple((call, result) for call, result in _EXAMPLE.findall(docstring)),
    )


def _written_type(annotation: ast.expr | None) -> str:
    return "Any" if annotation is None else ast.unparse(annotation)
