"""Prompt templates: every slot filled, numbers that keep their conditions, and phrasings that are all reached."""

from __future__ import annotations

import re
from random import Random

import pytest
from paceline.training.prompts import prompts
from paceline.training.prompts.arithmetic import evaluate
from paceline.training.prompts.library import load_templates, load_words
from paceline.training.prompts.mathematics import BOXED
from paceline.training.prompts.templates import Template, read_templates
from paceline.training.prompts.words import Words, article, number_form, numeral, read_words

MATH = (
    "math_shopping",
    "math_travel",
    "math_farm_kitchen",
    "math_people",
    "math_measures",
    "math_direct",
    "math_explain",
)
WORDS = Words({"person": ("Ann|f", "Bo|m"), "fruit": ("fig|figs", "pear|pears"), "pet": ("an {fruit.one} fly",)})


def one(text: str) -> Template:
    (template,) = read_templates(text)
    return template


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("a*b - 2", 10),
        ("a % 2 == 1 and b > a", True),
        ("not (a < b < 4)", True),
        ("a > b or b//2 == 2", True),
        ("-a + b**2", 13),
        ("gcd(12, a*6) + min(a, b) + isqrt(17)", 13),
    ],
)
def test_formulas(formula: str, value: int) -> None:
    assert evaluate(formula, {"a": 3, "b": 4}) == value


@pytest.mark.parametrize("formula", ["a/2", "z + 1", "open('x')", "a.real", "[a]", "'a'", "1.5"])
def test_what_is_no_formula_over_whole_numbers_is_refused(formula: str) -> None:
    with pytest.raises(ValueError, match="not a formula over whole numbers"):
        evaluate(formula, {"a": 3})


def test_numbers_keep_their_conditions() -> None:
    template = one("= a=2..40:2; b=3|5; c:=a*b; c%4==0; c>a+b\n{a} {b} {c}")
    for seed in range(200):
        a, b, c = map(int, template.fill(Random(seed), WORDS).split())
        assert a % 2 == 0
        assert 2 <= a <= 40
        assert b in (3, 5)
        assert c == a * b
        assert c % 4 == 0


def test_conditions_that_cannot_hold_are_reported() -> None:
    with pytest.raises(ValueError, match=r"no numbers meet the conditions of the template 'None of \{a\}'"):
        one("= a=2..4; a>9\nNone of {a}").fill(Random(0), WORDS)


def test_a_slot_without_a_list_and_a_block_without_a_sentence_are_reported() -> None:
    with pytest.raises(ValueError, match="no word list, or no word left in it: 'tree'"):
        one("a {tree}").fill(Random(0), WORDS)
    with pytest.raises(ValueError, match="a template without a sentence"):
        read_templates("= a=1..2")


def test_a_slot_means_one_thing_and_two_slots_two_things() -> None:
    template = one("{A} gives {B} {A.his} {fruit}. {B.he} likes every {fruit.one} and {fruit2}.")
    found = {template.fill(Random(seed), WORDS) for seed in range(40)}
    assert found == {
        "Ann gives Bo her figs. He likes every fig and pears.",
        "Ann gives Bo her pears. He likes every pear and figs.",
        "Bo gives Ann his figs. She likes every fig and pears.",
        "Bo gives Ann his pears. She likes every pear and figs.",
    }


def test_every_phrasing_and_order_is_reached() -> None:
    template = one("[Now|Then] start.\n~ one.\n~ two.\n? Why?\n? How[ much|]?")
    found = {template.fill(Random(seed), WORDS) for seed in range(300)}
    assert len(found) == 2 * 2 * 3
    assert "Then start. Two. One. How?" in found


def test_small_plain_numbers_can_be_words() -> None:
    template = one("= a=7..7; b=12..12\n{A.he} paid ${a} for {b} figs ({a} : {b}, {a}%, {a}x). {b}, no more\\n{a}?")
    assert template.fill(Random(1), WORDS, spell=True)[3:].lstrip() == (
        "paid $7 for twelve figs (7 : 12, 7%, 7x). Twelve, no more\nseven?"
    )


def test_entries_may_hold_slots() -> None:
    assert one("It is {pet}.").fill(Random(0), WORDS) in ("It is an fig fly.", "It is an pear fly.")
    endless = Words({"loop": ("{loop}",)})
    with pytest.raises(ValueError, match=r"no word left|without end"):
        one("{loop}").fill(Random(0), endless)


def test_word_lists_are_read() -> None:
    assert read_words("# note\ncity: Rome, Paris\n\ntext:\nOne, two.\n# note\nThree\ncity: Oslo\n") == {
        "city": ("Rome", "Paris", "Oslo"),
        "text": ("One, two.", "Three"),
    }


@pytest.mark.parametrize(
    ("number", "form", "written"),
    [
        (3, "w", "three"),
        (13, "w", "13"),
        (2, "times", "twice"),
        (9, "times", "9 times"),
        (4, "part", "a quarter"),
        (22, "th", "22nd"),
        (112, "th", "112th"),
        (250, "money", "$2.50"),
        (1_200_000, "money", "$12,000"),
        (75, "dec", "7.5"),
        (0, "clock", "12:00 a.m."),
        (785, "clock", "1:05 p.m."),
        (61, "hm", "1 hour and 1 minute"),
        (150, "hm", "2 hours and 30 minutes"),
        (12_345, "digits", "12345"),
    ],
)
def test_number_forms(number: int, form: str, written: str) -> None:
    assert number_form(number, form) == written


def test_numerals_and_articles() -> None:
    assert [numeral(number) for number in (7, 9_999, 12_345)] == ["7", "9999", "12,345"]
    assert article("He has a ", "orange") == "He has an "
    assert article("A ", "apple") == "An "
    assert article("a ", "uniform") == "a "
    assert article("a ", "one-way ticket") == "a "
    assert article("a ", "8-page book") == "an "
    assert article("Anna ", "ate") == "Anna "


@pytest.mark.parametrize("name", MATH)
def test_every_math_template_fills(name: str) -> None:
    words = load_words("words_math")
    for template in load_templates(name):
        for seed in range(12):
            text = template.fill(Random(seed), words, spell=seed % 2 == 0)
            assert not re.search(r"[{}\[\]|]|  | [.,?;]|\\n|None", text.replace("^{", "")), text
            assert text[0].isupper() or text[0] in "$0123456789", text
            assert not re.search(r"\b(?:a (?!one)[aeio]\w|a 8|an [bcdfg]\w)", text), text


def test_there_are_many_different_math_problems_near_the_fields_form() -> None:
    found = [each["turns"][0] for each in prompts("math", 3_000, 0)]
    assert len(set(found)) == 3_000
    boxed = sum(text.endswith(BOXED) for text in found)
    assert 1_800 < boxed < 2_500
    openings = [" ".join(text.split()[:6]) for text in found]
    assert len(set(openings)) > 2_000
    assert max(openings.count(opening) for opening in set(openings)) < 60
    assert max(len(text) for text in found) < 600
