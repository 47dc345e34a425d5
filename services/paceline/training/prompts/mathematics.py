"""Math: word problems of many situations, short questions with an answer, and things to prove or explain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from paceline.training.prompts import Conversation
from paceline.training.prompts.library import load_templates, load_words
from paceline.training.prompts.mixing import mixed
from paceline.training.prompts.templates import filled

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
"""How the field asks for the answer to a math problem."""

_STORIES = ("math_shopping", "math_travel", "math_farm_kitchen", "math_people", "math_measures")
_AFTER_STORIES = (
    (15, BOXED),
    (1, "\nShow your reasoning."),
    (1, " Think step by step."),
    (1, "\nExplain your answer."),
    (2, ""),
)
_AFTER_QUESTIONS = ((8, BOXED), (1, "\nThink step by step."), (5, ""))
_SPELLED = 0.35


def conversations(rng: Random) -> Iterator[Conversation]:
    """Math problems, without end: five in six are stories."""
    words = load_words("words_math")
    stories = filled(rng, load_templates(*_STORIES), words, spelled=_SPELLED)
    longer = filled(rng, load_templates("math_longer"), words, spelled=_SPELLED)
    questions = filled(rng, load_templates("math_direct"), words)
    explanations = filled(rng, load_templates("math_explain"), words)
    yield from mixed(
        rng,
        (10.0, _closed(rng, stories, _AFTER_STORIES)),
        (5.0, _closed(rng, longer, _AFTER_STORIES)),
        (2.5, _closed(rng, questions, _AFTER_QUESTIONS)),
        (0.5, _closed(rng, explanations, ((1, ""),))),
    )


def _closed(rng: Random, texts: Iterator[str], closings: Sequence[tuple[float, str]]) -> Iterator[Conversation]:
    weights = [weight for weight, _ in closings]
    for text in texts:
        ((_, closing),) = rng.choices(closings, weights)
        yield {"turns": [text + closing]}
