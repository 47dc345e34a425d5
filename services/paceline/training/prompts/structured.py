"""Structured and other short work: facts into JSON and tables, texts with a change, e-mails, steps, definitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from paceline.training.prompts import Conversation
from paceline.training.prompts.library import load_templates, load_words
from paceline.training.prompts.mixing import mixed
from paceline.training.prompts.templates import filled

_FOLLOWED = 0.15  # the share of conversations with a second turn
_AFTER_EXTRACTING = (
    "Now give the same as a markdown table.",
    "Now write it as JSON with an indent of two spaces.",
    "How sure are you? Check your answer against the text.",
    "Now say the same in one full sentence.",
    "Which part of the text did you take that from?",
)
_AFTER_REWRITING = (
    "Make it shorter.",
    "Now make it sound more formal.",
    "What did you change, and why? Answer with a list.",
    "Give me a second version.",
    "Write it again in simpler words.",
)
_AFTER_WRITING = (
    "Make it half as long.",
    "Turn that into a table.",
    "Rewrite it for a ten-year-old.",
    "Add one more example.",
    "Now do the same in a more cheerful tone.",
    "Summarize your answer in one sentence.",
)


def conversations(rng: Random) -> Iterator[Conversation]:
    """Structured and other tasks, without end; about one in seven goes on for a second turn."""
    yield from mixed(
        rng,
        (1.0, _followed(rng, "other_extract", _AFTER_EXTRACTING)),
        (1.0, _followed(rng, "other_rewrite", _AFTER_REWRITING)),
        (1.0, _followed(rng, "other_write", _AFTER_WRITING)),
    )


def _followed(rng: Random, name: str, follow_ups: Sequence[str]) -> Iterator[Conversation]:
    for text in filled(rng, load_templates(name), load_words("words_other", "words_math")):
        turns = [text]
        if rng.random() < _FOLLOWED:
            turns.append(rng.choice(follow_ups))
        yield {"turns": turns}
