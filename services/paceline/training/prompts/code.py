"""Code: short tasks as people put them to an assistant, and work on code that is there already."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from paceline.training.prompts import Conversation
from paceline.training.prompts.mixing import blocks, lines, mixed, shuffled

_OPENINGS = (
    (9, "Write a function to {}."),
    (9, "Write a python function to {}."),
    (2, "Write a Python function to {}."),
    (1, "Write a short Python program to {}."),
    (1, "How can I {} in Python?"),
    (1, "Please write a Python function to {}."),
    (1, "I need a Python function to {}. Can you write it?"),
    (1, "Show me how to {} in Python."),
    (1, "Create a Python function to {}."),
    (1, "Using only the standard library, write a Python function to {}."),
)

_EXTRAS = (
    "Include type hints.",
    "Include a docstring.",
    "Add two or three test cases.",
    "Show an example of its use.",
    "Explain how it works.",
    "Explain the time complexity.",
    "Handle empty input sensibly.",
    "Raise a ValueError for invalid input.",
    "Keep it as short as possible.",
    "Don't use any imports.",
    "Comment each step.",
    "Only give the code, without an explanation.",
)

_FOLLOW_UPS = (
    "Now write unit tests for it.",
    "What is its time and space complexity?",
    "Can you make it faster?",
    "Rewrite it without a loop.",
    "Rewrite it recursively.",
    "Add type hints and a docstring.",
    "Explain the code line by line.",
    "Which inputs would make it fail?",
    "Do the same in JavaScript.",
    "Make it work on a generator as well as on a list.",
    "Rename the variables so that a beginner can follow it.",
    "Turn it into a small command line program.",
)

_SNIPPET_FOLLOW_UPS = (
    "Show the whole code again with your changes.",
    "Write a test that would have caught the problem.",
    "Explain it again as if I had never programmed.",
    "Is there a function in the standard library for this?",
    "What would you call this function?",
    "Which other way is there to write it?",
    "Now do the same in TypeScript.",
)


def conversations(rng: Random) -> Iterator[Conversation]:
    """Conversations about code, short tasks without end."""
    yield from mixed(rng, (6.0, _tasks(rng)), (2.0, _snippets(rng)), (1.0, _questions(rng)))


def _tasks(rng: Random) -> Iterator[Conversation]:
    weights = [weight for weight, _ in _OPENINGS]
    while True:
        for task in shuffled(rng, lines("code_tasks.txt")):
            ((_, opening),) = rng.choices(_OPENINGS, weights)
            turns = [opening.format(task)]
            if rng.random() < 0.25:
                turns[0] += " " + rng.choice(_EXTRAS)
            if rng.random() < 0.15:
                turns.append(rng.choice(_FOLLOW_UPS))
            yield {"turns": turns}


def _snippets(rng: Random) -> Iterator[Conversation]:
    """Each thing one may ask about code, of each snippet, once."""
    pairs = [(task, code) for task in lines("code_snippet_tasks.txt") for code in blocks("code_snippets.txt")]
    for task, code in shuffled(rng, pairs):
        turns = [f"{task}\n```python\n{code}\n```"]
        if rng.random() < 0.2:
            turns.append(rng.choice(_SNIPPET_FOLLOW_UPS))
        yield {"turns": turns}


def _questions(rng: Random) -> Iterator[Conversation]:
    for line in shuffled(rng, lines("code_questions.txt")):
        yield {"turns": line.split(" | ")}
