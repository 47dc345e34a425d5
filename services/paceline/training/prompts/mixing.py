"""Parts that the domains' modules share: text resources, and streams mixed by weight."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, TypeVar

Item = TypeVar("Item")

_DATA = files("paceline.training.prompts") / "data"


def text(name: str) -> str:
    """A text resource, whole."""
    return (_DATA / name).read_text(encoding="utf-8")


@cache
def lines(name: str) -> tuple[str, ...]:
    """The entries of a text resource, one a line; blank lines and lines starting with ``# `` are not entries."""
    return tuple(line.strip() for line in text(name).splitlines() if line.strip() and not line.startswith("# "))


@cache
def blocks(name: str) -> tuple[str, ...]:
    """The entries of a text resource of many-line entries, set apart by lines of ``----``."""
    return tuple(block.strip("\n") for block in ("\n" + text(name)).split("\n----") if block.strip())


@cache
def sections(name: str) -> dict[str, tuple[str, ...]]:
    """The entries of a text resource, by the ``# heading`` they stand under."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text(name).splitlines():
        if line.startswith("# "):
            heading = line[2:].strip()
        elif line.strip():
            found.setdefault(heading, []).append(line.strip())
    return {each: tuple(entries) for each, entries in found.items()}


@cache
def records(name: str) -> tuple[dict[str, Any], ...]:
    """The entries of a JSON lines resource."""
    return tuple(json.loads(line) for line in text(name).splitlines() if line.strip())


def shuffled(rng: Random, items: Sequence[Item]) -> list[Item]:
    """A copy in random order."""
    return rng.sample(items, len(items))


def endless(make: Callable[[], Item]) -> Iterator[Item]:
    """What ``make`` returns, again and again."""
    while True:
        yield make()


def mixed(rng: Random, *weighted: tuple[float, Iterator[Item]]) -> Iterator[Item]:
    """Items of several streams, each next one drawn by weight; a stream that ends leaves the mixture."""
    left = list(weighted)
    while left:
        (place,) = rng.choices(range(len(left)), [weight for weight, _ in left])
        try:
            yield next(left[place][1])
        except StopIteration:
            del left[place]
