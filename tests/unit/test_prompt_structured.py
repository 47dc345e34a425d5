"""Structured prompts: every template fills, what looks like data is left as it was written, and there are many."""

from __future__ import annotations

import json
import re
from random import Random

import pytest
from paceline.training.prompts import prompts
from paceline.training.prompts.library import load_templates, load_words

FILES = ("other_extract", "other_rewrite", "other_write")


@pytest.mark.parametrize("name", FILES)
def test_every_template_fills(name: str) -> None:
    words = load_words("words_other", "words_math")
    for template in load_templates(name):
        for seed in range(12):
            text = template.fill(Random(seed), words)
            assert not re.search(r"\{[A-Za-z]\w*(?:\.\w+)?\}|\[[^\[\]\n]*\|[^\[\]\n]*\]|\\n|  | [.?!](?:\s|$)", text), (
                text
            )
            assert text == text.strip()
            assert not re.search(r"\b(?:a (?!one|eu)[aeio]\w|an [bcdfgjklmnpqrstvwxyz])", text), text


def test_word_lists_hold_text_without_marks_and_no_entry_twice_in_a_file() -> None:
    lists = load_words("words_other").lists
    for name, entries in lists.items():
        assert len(set(entries)) == len(entries), name
        assert not [entry for entry in entries if re.search(r"[\[\]{}\\]", entry)], name
    assert len(lists["paragraph"]) >= 40
    assert all(len(paragraph.split()) >= 30 for paragraph in lists["paragraph"])


def test_there_are_many_and_some_go_on() -> None:
    found = list(prompts("structured", 2_500, 0))
    assert len({each["turns"][0] for each in found}) == 2_500
    followed = sum(len(each["turns"]) == 2 for each in found)
    assert 250 < followed < 500
    openings = {" ".join(each["turns"][0].split()[:6]) for each in found}
    assert len(openings) > 700
    assert max(len(each["turns"][0]) for each in found) < 1_500


def test_json_that_is_given_as_correct_is_correct() -> None:
    given = [each["turns"][0] for each in prompts("structured", 2_500, 1)]
    found = [text.split(":\n", 1)[1] for text in given if text.startswith("Convert this JSON to")]
    assert len(found) > 5
    assert all(json.loads(text) for text in found)
