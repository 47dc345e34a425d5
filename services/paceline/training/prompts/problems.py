"""Functions to be written, shown as signature and docstring, in the forms that people use for them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from random import Random

from paceline.training.prompts import Conversation
from paceline.training.prompts.mixing import shuffled

_ASKS = (
    (12, "Write a solution to the following problem and make sure that it passes the tests:"),
    (1, "Complete the following Python function:"),
    (1, "Implement this function so that the examples in its docstring are true:"),
    (1, "Write the body of this Python function. Give the whole function in your answer."),
    (1, "Solve this problem in Python:"),
    (1, "Finish the code below."),
)

_STYLES = ("typing", "typing", "typing", "builtin", "builtin", "bare")
_ARROWS = ("{} ➞ {}", "{} == {}", "{} => {}", "{} -> {}", "{}  # {}", "{} returns {}")
_HEADS = ("Example:", "Examples:", "For example:", "Some examples:")
_TYPING = {"list": "List", "dict": "Dict", "tuple": "Tuple", "set": "Set"}


@dataclass(frozen=True, slots=True)
class Problem:
    """A function to be written."""

    name: str
    parameters: tuple[tuple[str, str], ...]  # name and type, the type as Python 3.9 writes it
    returns: str
    text: str
    examples: tuple[tuple[str, str], ...]  # a call and the repr of its result


def asked(rng: Random, problem: Problem) -> Conversation:
    """One conversation that asks for the function, in a form drawn from ``rng``."""
    ((_, ask),) = rng.choices(_ASKS, [weight for weight, _ in _ASKS])
    style = rng.choice(_STYLES)
    code = f"{_imports(problem, style)}\n\n{_signature(problem, style)}\n{_docstring(rng, problem)}"
    return {"turns": [f"{ask}\n```python\n{code}\n\n```"]}


def _imports(problem: Problem, style: str) -> str:
    types = " ".join([problem.returns, *(kind for _, kind in problem.parameters)])
    names = set(re.findall(r"Optional|Any", types)) if style != "bare" else set()
    if style == "typing":
        names |= {name for kind, name in _TYPING.items() if re.search(rf"\b{kind}\b", types)}
    return f"from typing import {', '.join(sorted(names))}\n" if names else ""


def _signature(problem: Problem, style: str) -> str:
    if style == "bare":
        return f"def {problem.name}({', '.join(name for name, _ in problem.parameters)}):"
    parameters = ", ".join(f"{name}: {_type(kind, style)}" for name, kind in problem.parameters)
    return f"def {problem.name}({parameters}) -> {_type(problem.returns, style)}:"


def _type(kind: str, style: str) -> str:
    if style != "typing":
        return kind
    return re.sub(r"\b(list|dict|tuple|set)\b", lambda found: _TYPING[found[1]], kind)


def _docstring(rng: Random, problem: Problem) -> str:
    quotes = rng.choice(('"""', '"""', '"""', "'''"))
    text = textwrap.wrap(problem.text, rng.choice((72, 90, 100)))
    if rng.random() < 0.5:
        text[0] = f"{quotes}{rng.choice((' ', ' ', ''))}{text[0]}"
    else:
        text.insert(0, quotes)
    body = [*text, *_examples(rng, problem), quotes]
    return "\n".join(f"    {line}" if line else "" for line in body)


def _examples(rng: Random, problem: Problem) -> list[str]:
    chosen = list(problem.examples)
    if len(chosen) > 2 and rng.random() < 0.5:
        chosen = sorted(shuffled(rng, chosen)[:2], key=problem.examples.index)
    if rng.random() < 0.7:
        gap = [""] if rng.random() < 0.3 else []
        return [*gap, *(line for call, result in chosen for line in (f">>> {call}", result))]
    arrow = rng.choice(_ARROWS)
    return ["", rng.choice(_HEADS), *(arrow.format(call, result) for call, result in chosen)]
