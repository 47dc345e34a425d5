"""What template slots can say: word lists, people with their pronouns, and the ways to write a number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from random import Random

_SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times", 6: "six times"}
_PARTS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 6: "a sixth", 8: "an eighth", 10: "a tenth"}
_PRONOUNS = {
    "f": {"he": "she", "his": "her", "him": "her", "himself": "herself"},
    "m": {"he": "he", "his": "his", "him": "him", "himself": "himself"},
}
_SOUNDS_LIKE_VOWEL = re.compile(r"(?!on(?:e\b|ce)|eu)[aeio]|u(?!ni|s[eu]|til)|8|11\b|18\b|hour|honest", re.IGNORECASE)


@dataclass(frozen=True)
class Words:
    """Word lists by name. An entry `loaf|loaves` has a singular and a plural; a person is `name|f` or `name|m`."""

    lists: Mapping[str, tuple[str, ...]]

    def draw(self, name: str, rng: Random, taken: Set[str]) -> str:
        """An entry of a list that is not taken; ValueError when there is no such list or nothing left of it."""
        free = [entry for entry in self.lists.get(name, ()) if entry not in taken]
        if not free:
            raise ValueError(f"no word list, or no word left in it: {name!r}")
        return rng.choice(free)

    @staticmethod
    def form(entry: str, form: str) -> str:
        """An entry as a plural (no form), `one` (singular), `cap` (first letter upper-case) or `title`."""
        one, _, many = entry.partition("|")
        if form == "one":
            return one
        text = many or one
        if form == "cap":
            return text[:1].upper() + text[1:]
        if form == "title":
            return text.title()
        if form:
            raise ValueError(f"a word has no form {form!r}: {entry!r}")
        return text


def read_words(text: str) -> dict[str, tuple[str, ...]]:
    """The lists of a file of lines `name: entry, entry, …`; long entries stand one to a line under a line `name:`."""
    lists: dict[str, tuple[str, ...]] = {}
    current = ""
    for line in text.splitlines():
        head = re.fullmatch(r"([a-z_]+):(.*)", line)
        if head:
            current = head[1]
            entries = [entry.strip() for entry in head[2].split(",") if entry.strip()]
            lists[current] = lists.get(current, ()) + tuple(entries)
        elif line.strip() and not line.startswith("#"):
            lists[current] = (*lists[current], line.strip())
    return lists


def person_form(entry: str, form: str) -> str:
    """A person's name, or `he`, `his`, `him`, `himself` in the person's gender; upper-case first letter if asked so."""
    name, _, gender = entry.partition("|")
    if not form:
        return name
    pronoun = _PRONOUNS[gender][form.lower()]
    return pronoun.capitalize() if form[0].isupper() else pronoun


def numeral(number: int, spell: bool = False) -> str:
    """A number in digits, with commas from ten thousand; up to twelve as a word when `spell`."""
    if spell and 0 <= number <= 12:
        return _SMALL[number]
    return f"{number:,}" if abs(number) >= 10_000 else str(number)


def number_form(number: int, form: str) -> str:  # noqa: PLR0911 - one line a form
    """A number as `w` (word up to twelve), `times`, `part` (1/n), `th`, `money` (of cents), `clock` (of minutes), `dec`
    (of tenths), `digits` or `hm` (minutes as hours and minutes); ValueError for another form."""
    match form:
        case "w":
            return numeral(number, spell=True)
        case "digits":
            return str(number)
        case "times":
            return _TIMES.get(number, f"{number} times")
        case "part":
            return _PARTS.get(number, f"1/{number}")
        case "th":
            return f"{number}{_suffix(number)}"
        case "money":
            return f"${number // 100:,}" + (f".{number % 100:02d}" if number % 100 else "")
        case "dec":
            return f"{number // 10}.{number % 10}"
        case "clock":
            hour, minute = divmod(number % 1440, 60)
            return f"{(hour - 1) % 12 + 1}:{minute:02d} {'a.m.' if hour < 12 else 'p.m.'}"
        case "hm":
            hours, minutes = divmod(number, 60)
            written = f"{hours} hour{'s' if hours > 1 else ''}" if hours else ""
            rest = f"{minutes} minute{'s' if minutes > 1 else ''}" if minutes else ""
            return " and ".join(part for part in (written, rest) if part)
    raise ValueError(f"a number has no form {form!r}")


def article(before: str, value: str) -> str:
    """The text before a slot with its last `a` turned into `an` where the value asks for it."""
    match = re.search(r"(?:^|\W)([aA]) $", before)
    return f"{before[:-1]}n " if match and _SOUNDS_LIKE_VOWEL.match(value) else before


def _suffix(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
