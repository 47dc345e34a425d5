"""Prompts of our own making, to which a target's answers train a drafter.

Every domain is a module with ``conversations(rng)``: a stream of conversations, possibly endless, in an order fixed by
the generator it is given. Nothing here is taken from a set that anybody measures on.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from itertools import islice
from typing import TypedDict

from paceline.speculation.errors import InvalidRequest

_MODULES = {
    "code": "paceline.training.prompts.code",
    "code-docstring": "paceline.training.prompts.docstrings",
    "chat": "paceline.training.prompts.chat",
    "math": "paceline.training.prompts.mathematics",
    "structured": "paceline.training.prompts.structured",
}  # domain → module; a new domain is one more line

DOMAINS = tuple(_MODULES)

_STALE = 2_000  # repeats in a row after which a domain has nothing new to say


class Conversation(TypedDict):
    """What a user says, turn by turn; the target answers each turn before the next one is put."""

    turns: list[str]


def prompts(domain: str, count: int, seed: int) -> Iterator[Conversation]:
    """The first ``count`` conversations of a domain, no first turn twice.

    A function of the arguments alone; a smaller count yields the beginning of what a larger one yields.

    Raises InvalidRequest: an unknown domain, a negative count, or (while iterating) a count the domain cannot fill.
    """
    if domain not in _MODULES:
        raise InvalidRequest("domain", expected=f"one of {', '.join(DOMAINS)}", got=domain)
    if count < 0:
        raise InvalidRequest("count", expected="0 or more", got=count)
    return _exactly(domain, count, seed)


def _exactly(domain: str, count: int, seed: int) -> Iterator[Conversation]:
    yielded = 0
    for each in islice(_distinct(domain, seed), count):
        yielded += 1
        yield each
    if yielded < count:
        raise InvalidRequest("count", expected=f"at most {yielded}", got=count, hint=f"{domain} has no more prompts")


def _distinct(domain: str, seed: int) -> Iterator[Conversation]:
    module = importlib.import_module(_MODULES[domain])
    stream: Iterator[Conversation] = module.conversations(random.Random(f"{domain}:{seed}"))  # noqa: S311 - not secret
    seen: set[str] = set()
    repeats = 0
    for each in stream:
        opening = " ".join(each["turns"][0].casefold().split())
        repeats = repeats + 1 if opening in seen else 0
        if repeats > _STALE:
            return
        if repeats == 0:
            seen.add(opening)
            yield each
