"""The parts that ``pipelines`` puts together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Part:
    """One step of a pipeline: how a name says it, how a sentence says it, what it does."""

    name: str
    said: str
    does: Callable[[Any], Any]


INTEGERS = (
    Part("even", "even {}", lambda x: x % 2 == 0),
    Part("odd", "odd {}", lambda x: x % 2 == 1),
    Part("positive", "{} above zero", lambda x: x > 0),
    Part("negative", "{} below zero", lambda x: x < 0),
    Part("small", "{} between -5 and 5", lambda x: -5 <= x <= 5),
    Part("two_digit", "{} with exactly two digits", lambda x: 10 <= abs(x) <= 99),
    Part("multiple_of_three", "{} that are multiples of three", lambda x: x % 3 == 0),
    Part("multiple_of_five", "{} that are multiples of five", lambda x: x % 5 == 0),
    Part("large", "{} larger than 20", lambda x: x > 20),
    Part("ending_in_seven", "{} whose last digit is 7", lambda x: abs(x) % 10 == 7),
    Part("without_zero_digit", "{} that do not contain the digit 0", lambda x: "0" not in str(x)),
)

INTEGER_CHANGES = (
    Part("", "", lambda x: x),
    Part("squared", "square each of them", lambda x: x * x),
    Part("doubled", "double each of them", lambda x: 2 * x),
    Part("incremented", "add one to each of them", lambda x: x + 1),
    Part("absolute", "take the absolute value of each of them", abs),
    Part("negated", "negate each of them", lambda x: -x),
    Part("last_digit", "take the last digit of each of them, ignoring signs", lambda x: abs(x) % 10),
    Part("halved", "divide each of them by two, rounding down", lambda x: x // 2),
    Part(
        "digit_sum",
        "replace each of them by the sum of its digits, ignoring signs",
        lambda x: sum(map(int, str(abs(x)))),
    ),
    Part("modulo_four", "take the remainder of each of them when divided by four", lambda x: x % 4),
)

WORDS = (
    Part("starting_with_vowel", "{} that start with a vowel", lambda w: w[0].lower() in "aeiou"),
    Part("long", "{} with more than four letters", lambda w: len(w) > 4),
    Part("short", "{} with at most four letters", lambda w: len(w) <= 4),
    Part("with_e", "{} that contain the letter e", lambda w: "e" in w.lower()),
    Part("without_a", "{} that do not contain the letter a", lambda w: "a" not in w.lower()),
    Part("even_length", "{} with an even number of letters", lambda w: len(w) % 2 == 0),
    Part("capitalized", "{} that begin with an upper-case letter", lambda w: w[0].isupper()),
    Part("lower_case", "{} that are all in lower case", lambda w: w.islower()),
    Part("ending_in_consonant", "{} that do not end in a vowel", lambda w: w[-1].lower() not in "aeiou"),
    Part("without_repeats", "{} in which no letter is repeated", lambda w: len(set(w.lower())) == len(w)),
)

WORD_CHANGES = (
    Part("", "", lambda w: w),
    Part("reversed", "reverse each of them", lambda w: w[::-1]),
    Part("upper_case", "turn each of them into upper case", str.upper),
    Part("lengths_of", "replace each of them by its length", len),
    Part("first_letters_of", "keep only the first letter of each", lambda w: w[0]),
    Part("last_letters_of", "keep only the last letter of each", lambda w: w[-1]),
    Part(
        "vowel_counts_of",
        "replace each of them by its number of vowels",
        lambda w: sum(c in "aeiou" for c in w.lower()),
    ),
    Part("doubled", "write each of them twice without a space", lambda w: w * 2),
    Part("without_first_letter", "remove the first letter of each", lambda w: w[1:]),
)

INTEGER_RESULTS = (
    (Part("sum_of", "their sum", sum), "int"),
    (Part("largest", "the largest of them, or 0 if there are none", lambda v: max(v, default=0)), "int"),
    (Part("smallest", "the smallest of them, or 0 if there are none", lambda v: min(v, default=0)), "int"),
    (Part("distinct", "how many different values there are", lambda v: len(set(v))), "int"),
    (Part("sorted", "them in ascending order", sorted), "list[int]"),
    (Part("descending", "them in descending order", lambda v: sorted(v, reverse=True)), "list[int]"),
    (Part("backwards", "them in reverse order", lambda v: v[::-1]), "list[int]"),
    (
        Part(
            "spread_of",
            "the difference between the largest and the smallest, or 0 if there are none",
            lambda v: max(v, default=0) - min(v, default=0),
        ),
        "int",
    ),
    (Part("first_three", "the first three of them, or all if there are fewer", lambda v: v[:3]), "list[int]"),
    (Part("joined", "them as a string, separated by commas", lambda v: ",".join(map(str, v))), "str"),
    (Part("has_repeated", "whether any value occurs more than once", lambda v: len(set(v)) < len(v)), "bool"),
    (Part("last", "the last of them, or None if there are none", lambda v: v[-1] if v else None), "Optional[int]"),
)

WORD_RESULTS = (
    (Part("joined", "them joined by hyphens", "-".join), "str"),
    (Part("sorted", "them in alphabetical order", sorted), "list[str]"),
    (Part("backwards", "them in reverse order", lambda v: v[::-1]), "list[str]"),
    (Part("distinct", "how many different ones there are", lambda v: len(set(v))), "int"),
    (
        Part(
            "longest",
            "the longest of them, the first one if there are several, or an empty string",
            lambda v: max(v, key=len, default=""),
        ),
        "str",
    ),
    (Part("total_length_of", "their total length", lambda v: sum(map(len, v))), "int"),
    (
        Part(
            "counts_of",
            "a dictionary that says how often each of them occurs",
            lambda v: {each: v.count(each) for each in v},
        ),
        "dict[str, int]",
    ),
    (
        Part("numbered", "them as a list of pairs (position, text), counting from 1", lambda v: list(enumerate(v, 1))),
        "list[tuple[int, str]]",
    ),
    (Part("first", "the first of them, or None if there are none", lambda v: v[0] if v else None), "Optional[str]"),
    (Part("concatenated", "them put together without spaces", "".join), "str"),
)
