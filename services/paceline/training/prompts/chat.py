"""Chat: questions and tasks written by hand, most with a second turn, and templates that multiply topics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from paceline.training.prompts import Conversation
from paceline.training.prompts.mixing import endless, lines, mixed, sections, shuffled

_WRITTEN = ("chat_written.txt", "chat_asked.txt")
_TEMPLATES = "chat_templates.txt"
_TEXTS = {
    "Write",
    "Describe",
    "Invent",
    "Imagine",
    "Tell",
    "Continue",
    "Turn",
    "Rewrite",
}  # what these ask for is a text
_SLOT = re.compile(r"\{(\w+)\}")
_SECOND_TURNS = 0.65  # how many of the templates' conversations go on
_KINDS = {
    "another_character": "a_character",
    "other_activity": "activity",
    "other_animal": "animal",
    "other_food": "food",
    "an_animal": "animal",
}  # slots that are filled from another slot's list


def conversations(rng: Random) -> Iterator[Conversation]:
    """Conversations about anything: those written by hand once each, those from templates without end."""
    yield from mixed(rng, (1.0, _written(rng)), (1.0, endless(lambda: _from_template(rng))))


def _written(rng: Random) -> Iterator[Conversation]:
    for line in shuffled(rng, [line for name in _WRITTEN for line in lines(name)]):
        yield {"turns": line.split(" | ")}


def _from_template(rng: Random) -> Conversation:
    lists = sections(_TEMPLATES)
    template = rng.choice(lists["template"])
    turns = [_filled(rng, template, lists)]
    if rng.random() < _SECOND_TURNS:
        more = "text" if template.split()[0] in _TEXTS else "answer"
        turns.append(rng.choice(lists["follow"] + lists[more]))
    return {"turns": turns}


def _filled(rng: Random, template: str, lists: dict[str, tuple[str, ...]]) -> str:
    """The template with every slot filled, no filling used twice."""
    used: set[str] = set()

    def fill(slot: re.Match[str]) -> str:
        word = rng.choice([each for each in lists[_KINDS.get(slot[1], slot[1])] if each not in used])
        used.add(word)
        if slot[1] == "an_animal":
            word = f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
        opens = slot.start() == 0 or template[slot.start() - 1] == '"'
        return word[0].upper() + word[1:] if opens else word

    text = _SLOT.sub(fill, template)
    return re.sub(r"\b([Aa]) (?=(?:honest|encouraging|apologetic|absurd)\b)", r"\1n ", text)
