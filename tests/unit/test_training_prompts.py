"""Training prompts: every domain deterministic, without repeats, well-formed, and large enough."""

from __future__ import annotations

import json
import re
from itertools import islice, repeat
from pathlib import Path
from random import Random

import pytest
from paceline.speculation.errors import InvalidRequest
from paceline.training.prompts import DOMAINS, prompts
from paceline.training.prompts.__main__ import main
from paceline.training.prompts.mixing import blocks, lines, mixed, shuffled

COUNT = 600
BENCH = Path(__file__).parents[2] / "bench" / "prompts"


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_is_a_function_of_count_and_seed(domain: str) -> None:
    some = list(prompts(domain, COUNT, 7))
    assert some == list(prompts(domain, COUNT, 7))
    assert some[:50] == list(prompts(domain, 50, 7))
    assert some != list(prompts(domain, COUNT, 8))


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_opening_comes_twice(domain: str) -> None:
    openings = [" ".join(each["turns"][0].casefold().split()) for each in prompts(domain, COUNT, 0)]
    assert len(openings) == COUNT
    assert len(set(openings)) == COUNT


@pytest.mark.parametrize("domain", DOMAINS)
def test_turns_are_trimmed_text_with_every_slot_filled(domain: str) -> None:
    for each in prompts(domain, COUNT, 1):
        assert set(each) == {"turns"}
        assert 1 <= len(each["turns"]) <= 3
        for turn in each["turns"]:
            assert turn
            assert turn == turn.strip()
            assert len(turn) < 4_000
            assert turn.isprintable() or "\n" in turn
            assert turn.count("```") % 2 == 0


def _grams(turn: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9_']+", turn.lower())
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_prompt_shares_eight_words_with_those_the_benches_measure_on(domain: str) -> None:
    measured = [json.loads(line)["turns"] for path in BENCH.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert measured
    held = {gram for turns in measured for turn in turns for gram in _grams(turn)}
    for each in prompts(domain, COUNT, 0):
        for turn in each["turns"]:
            assert not held & _grams(turn)


def test_a_conversation_of_chat_mostly_goes_on() -> None:
    some = list(prompts("chat", 1_000, 0))
    assert 600 <= sum(len(each["turns"]) > 1 for each in some) < 1_000


@pytest.mark.parametrize("domain", ["code", "code-docstring", "chat"])
def test_a_domain_has_thousands_to_say(domain: str) -> None:
    assert len({each["turns"][0] for each in prompts(domain, 3_000, 0)}) == 3_000


@pytest.mark.parametrize(
    ("least", "entries"),
    [
        (450, lines("code_tasks.txt")),
        (120, lines("code_questions.txt")),
        (40, blocks("code_snippets.txt")),
        (500, lines("chat_written.txt") + lines("chat_asked.txt")),
    ],
)
def test_entries_are_many_and_differ(least: int, entries: tuple[str, ...]) -> None:
    assert len({each.partition(" | ")[0].casefold() for each in entries}) == len(entries)
    assert len(entries) >= least


def test_no_slot_is_left_open() -> None:
    for each in prompts("chat", 2_000, 0):
        for turn in each["turns"]:
            assert not re.search(r"\{\w+\}|\b[Aa] (honest|[aeio]\w+ (e-mail|letter|message))| {2}", turn)


def test_what_cannot_be_given_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match=r"domain: expected one of .*, got 'poetry'"):
        prompts("poetry", 1, 0)
    with pytest.raises(InvalidRequest, match="count: expected 0 or more, got -1"):
        prompts(DOMAINS[0], -1, 0)


def test_the_command_writes_one_file_per_domain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "20", "--seed", "3", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"{domain}.jsonl" for domain in DOMAINS}
    for domain in DOMAINS:
        written = (tmp_path / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in written] == list(prompts(domain, 20, 3))
    assert capsys.readouterr().out.count(".jsonl: 20 prompts") == len(DOMAINS)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "-1", "--out", str(tmp_path)]) == 2
    assert "count: expected 0 or more" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_mixture_holds_every_item_and_goes_on_when_a_stream_ends() -> None:
    blended = mixed(Random(1), (1.0, iter("abc")), (9.0, repeat("x")))
    first = list(islice(blended, 200))
    assert [each for each in first if each != "x"] == ["a", "b", "c"]
    assert sorted(mixed(Random(1), (1.0, iter("abc")), (9.0, iter("de")))) == list("abcde")


def test_shuffling_leaves_the_original_alone() -> None:
    items = tuple(range(20))
    assert sorted(shuffled(Random(0), items)) == list(items)
    assert shuffled(Random(0), items) != list(items)
