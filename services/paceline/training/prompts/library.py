"""The written material of the prompts: template files and word lists that stand beside this package as text."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from paceline.training.prompts.templates import Template, read_templates
from paceline.training.prompts.words import Words, read_words

_DATA = files("paceline.training.prompts") / "data"


@cache
def load_templates(*names: str) -> tuple[Template, ...]:
    """The templates of the files named, in order."""
    return tuple(template for name in names for template in read_templates(_read(name)))


@cache
def load_words(*names: str) -> Words:
    """The word lists of the files named; a list in several files is the entries of all."""
    lists: dict[str, tuple[str, ...]] = {}
    for name in names:
        for listed, entries in read_words(_read(name)).items():
            lists[listed] = lists.get(listed, ()) + entries
    return Words(lists)


def _read(name: str) -> str:
    return (_DATA / f"{name}.txt").read_text(encoding="utf-8")
