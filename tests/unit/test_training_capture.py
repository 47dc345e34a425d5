"""Capture over a fake target: the same answers and the same samples whatever the batch, the parts and the kills."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paceline.cache.target import Sample, TargetCache
from paceline.cache.target.verify import verify
from paceline.engine.bits import bf16_bits
from paceline.engine.fake import FakeEngine, FakeOptions
from paceline.engine.fake_tokenizer import IM_END
from paceline.engine.interface import Slice, StepPlan, StepResult, Wanted
from paceline.speculation.errors import InvalidRequest, Unavailable
from paceline.speculation.params import SamplingParams
from paceline.training.capture.__main__ import main
from paceline.training.capture.answers import Answer, AnswerLog, load
from paceline.training.capture.conversations import Conversation, read_conversations
from paceline.training.capture.options import parse
from paceline.training.capture.recipe import Recipe
from paceline.training.capture.states import scripts

from tests.unit.target_cache_kit import deepspec_read, same

MODEL = "fake:seed=3,eos=0.05"
PROMPTS: list[dict[str, Any]] = [
    {"turns": ["Hello"]},
    {"turns": ["One", "Two", "Three"]},
    {"turns": ["Bye"], "system": "Be brief."},
    {"turns": ["a", "b"]},
    *({"turns": [f"Number {i}"]} for i in range(9)),
]
TURNS = sum(len(each["turns"]) for each in PROMPTS)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.jsonl", PROMPTS)


def write_prompts(path: Path, prompts: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return path


def capture(prompts: Path, out: Path, *options: str) -> int:
    base = ["--model", MODEL, "--prompts", str(prompts), "--out", str(out), "--max-tokens", "12", "--seed", "5"]
    return main([*base, *options])


def answers_in(path: Path) -> dict[tuple[str, int, int], Answer]:
    return {each.place: each for each in load(path).answers}


def test_a_cache_holds_what_the_target_read_and_said(prompts: Path, tmp_path: Path) -> None:
    assert capture(prompts, tmp_path / "cache") == 0
    answers = load(tmp_path / "cache.answers.jsonl").answers
    assert len(answers) == TURNS
    cache = TargetCache.open(tmp_path / "cache")
    assert verify(cache).sound
    assert len(deepspec_read(tmp_path / "cache")) == len(cache) == len(PROMPTS), "one sample for each conversation"
    engine = FakeEngine(FakeOptions(seed=3, eos=0.05))
    wholes = {(*each.prompt, *each.tokens): each for each in answers if each.last}
    for sample in cache:
        tokens = tuple(sample.input_ids.tolist())
        each = wholes.pop(tokens)
        assert sample.loss_mask[-len(each.tokens) :].all()
        assert not sample.loss_mask[len(each.prompt) - 1]
        assert (tokens[-1] == IM_END) == (each.finish == "stop")
        assert same(sample, in_one_step(engine, sample))
    assert not wholes


def in_one_step(engine: FakeEngine, sample: Sample) -> Sample:
    """What a sample should be, by one forward pass over all of it."""
    tokens = tuple(sample.input_ids.tolist())
    assert engine.reserve("all", len(tokens))
    piece = Slice("all", 0, tokens, 0, SamplingParams(), 1, hidden=True)
    [hidden] = engine.step(StepPlan(0, (piece,), Wanted((1,), last=True))).hidden
    engine.free("all")
    assert hidden is not None
    assert hidden.last is not None
    return replace(sample, hidden=bf16_bits(hidden.layers), last_hidden=bf16_bits(hidden.last))


def test_loss_is_on_every_answer_of_a_conversation(prompts: Path, tmp_path: Path) -> None:
    assert capture(prompts, tmp_path / "cache") == 0
    answers = load(tmp_path / "cache.answers.jsonl").answers
    said = {(each.conversation, each.choice): 0 for each in answers}
    for each in answers:
        said[each.conversation, each.choice] += len(each.tokens)
    own = sorted(int(sample.loss_mask.sum()) for sample in TargetCache.open(tmp_path / "cache"))
    assert own == sorted(said.values())


@pytest.mark.parametrize(
    "options", [["--sessions", "1"], ["--sessions", "3", "--step-tokens", "5"], ["--kv-tokens", "256"]]
)
def test_the_batch_changes_nothing(prompts: Path, tmp_path: Path, options: list[str]) -> None:
    assert capture(prompts, tmp_path / "one") == 0
    assert capture(prompts, tmp_path / "two", *options) == 0
    one, two = (answers_in(tmp_path / f"{name}.answers.jsonl") for name in ("one", "two"))
    assert one == two
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def contents(folder: Path) -> dict[bytes, list[bytes]]:
    """Samples by their tokens: keys follow the order in which answers were finished."""
    return {each.input_ids.tobytes(): [part.tobytes() for part in each.parts] for each in TargetCache.open(folder)}


def test_parts_make_one_cache(prompts: Path, tmp_path: Path) -> None:
    assert capture(prompts, tmp_path / "whole") == 0
    for part in range(3):
        assert capture(prompts, tmp_path / "parts", "--part", f"{part}/3", "--root", str(tmp_path / "root")) == 0
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    assert len(deepspec_read(tmp_path / "parts")) == len(PROMPTS)


def test_the_mixture_is_of_the_conversations(prompts: Path, tmp_path: Path) -> None:
    assert capture(prompts, tmp_path / "cache", "--answers-only", "--samples", "3", "--greedy-share", "0.5") == 0
    found = answers_in(tmp_path / "cache.answers.jsonl")
    talks = {each.conversation: {other.choice for other in found.values() if other.conversation == each.conversation}
             for each in found.values()}  # fmt: skip
    temperatures = {each.conversation: each.temperature for each in found.values()}
    assert {len(choices) for choices in talks.values()} == {1, 3}
    assert all((len(choices) == 1) == (temperatures[digest] == 0) for digest, choices in talks.items())
    assert not (tmp_path / "cache").exists()


class Killed(Exception):
    """Stands for a kill."""


def test_a_killed_capture_goes_on_where_it_was(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert capture(prompts, tmp_path / "whole") == 0
    step, steps = FakeEngine.step, 0

    def failing(engine: FakeEngine, plan: StepPlan) -> StepResult:
        nonlocal steps
        steps += 1
        if steps % 19 == 0:
            raise Killed
        return step(engine, plan)

    monkeypatch.setattr(FakeEngine, "step", failing)
    kills = 0
    for _ in range(30):
        try:
            assert capture(prompts, tmp_path / "cache", "--sessions", "4", "--step-tokens", "40") == 0
            break
        except Killed:
            kills += 1
            with (tmp_path / "cache.answers.jsonl").open("ab") as file:
                file.write(b'{"conversation":"half a li')
    assert 2 < kills < 30
    assert answers_in(tmp_path / "whole.answers.jsonl") == answers_in(tmp_path / "cache.answers.jsonl")
    assert contents(tmp_path / "whole") == contents(tmp_path / "cache")


def test_more_prompts_add_to_a_cache(prompts: Path, tmp_path: Path) -> None:
    few = write_prompts(tmp_path / "few.jsonl", PROMPTS[3:5])
    assert capture(few, tmp_path / "cache") == 0
    assert len(TargetCache.open(tmp_path / "cache")) == 2
    assert capture(prompts, tmp_path / "cache") == 0
    assert capture(prompts, tmp_path / "whole") == 0
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_conversations_that_are_not_over_wait(prompts: Path, tmp_path: Path) -> None:
    assert capture(prompts, tmp_path / "cache", "--answers-only") == 0
    answers = load(tmp_path / "cache.answers.jsonl").answers
    assert len(list(scripts(answers))) == len(PROMPTS)
    over = [each for each in answers if each.turn == 0]
    assert len(list(scripts(over))) == len(PROMPTS) - 2
    assert capture(prompts, tmp_path / "cache", "--from-answers", "--min-loss-tokens", "12") == 0
    kept = TargetCache.open(tmp_path / "cache")
    assert 0 < len(kept) < len(PROMPTS)
    assert all(each.loss_mask.sum() >= 12 for each in kept)


def test_states_of_another_numerics_class_are_told(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capture(prompts, tmp_path / "cache", "--answers-only") == 0
    path = tmp_path / "cache.answers.jsonl"
    path.write_text(path.read_text().replace('"numerics_class":"', '"numerics_class":"other-', 1))
    assert capture(prompts, tmp_path / "cache", "--from-answers") == 0
    assert "of numerics class other-" in capsys.readouterr().err
    made = TargetCache.open(tmp_path / "cache").manifest.provenance
    assert made["paceline_answers"]["numerics_class"] == "other-" + made["paceline_states"]["numerics_class"]


def test_what_has_no_room_is_told(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert capture(prompts, tmp_path / "cache", "--max-length", "40") == 0
    told = capsys.readouterr().err
    assert "1 prompts are longer than --max-length" in told, "the one with a system message"
    answers = load(tmp_path / "cache.answers.jsonl").answers
    assert max(len(each.prompt) + len(each.tokens) for each in answers) <= 40
    assert f"answers: {TURNS - 1} of {TURNS}" in told, "turns after the end of room count as done"


def test_texts_that_read_otherwise_make_samples_of_their_own() -> None:
    def answer(turn: int, prompt: tuple[int, ...], tokens: tuple[int, ...], *, last: bool) -> Answer:
        return Answer("c", 0, turn, last, 0, 0.0, prompt, tokens, "stop")

    whole = [answer(0, (1, 2), (3, 4), last=False), answer(1, (1, 2, 3, 4, 5), (6,), last=True)]
    [script] = scripts(whole, part=1)
    assert (script.key, script.tokens) == (1 << 40, (1, 2, 3, 4, 5, 6))
    assert script.loss_mask(6).tolist() == [0, 0, 1, 1, 0, 1]
    apart = [whole[0], answer(1, (1, 2, 9, 5), (6,), last=True)]
    assert [(each.key, each.tokens) for each in scripts(apart)] == [(0, (1, 2, 3, 4)), (1, (1, 2, 9, 5, 6))]


def test_an_answers_file_belongs_to_its_settings(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capture(prompts, tmp_path / "cache", "--answers-only") == 0
    assert capture(prompts, tmp_path / "cache", "--temperature", "0.5") == 2
    assert "temperature: expected 1.0, got 0.5" in capsys.readouterr().err
    assert main(["--model", "fake:seed=4", "--out", str(tmp_path / "cache"), "--from-answers"]) == 2
    assert "fingerprint" in capsys.readouterr().err
    with AnswerLog(tmp_path / "log", {"a": 1}), pytest.raises(Unavailable, match="another process"):
        AnswerLog(tmp_path / "log", {"a": 1})
    assert main(["--out", str(tmp_path / "none"), "--from-answers", "--model", MODEL]) == 2
    (tmp_path / "broken.jsonl").write_text('{"paceline_answers": 1}\n{"prompt": []}\n')
    with pytest.raises(InvalidRequest, match=r"broken.jsonl:2: expected an answer"):
        load(tmp_path / "broken.jsonl")


def test_prompts_are_read_once_and_refused_by_line(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "p.jsonl", [{"turns": ["a"]}, {"turns": ["a"]}, {"turns": ["a"], "system": "s"}])
    assert read_conversations([path, path]) == [Conversation(("a",)), Conversation(("a",), "s")]
    wrongs: list[Any] = [{"turns": []}, {"turns": [1]}, {"prompt": "a"}, {"turns": ["a"], "system": 3}, ["a"]]
    for wrong in wrongs:
        path.write_text(json.dumps({"turns": ["a"]}) + "\n\n" + json.dumps(wrong) + "\n")
        with pytest.raises(InvalidRequest, match=r"p.jsonl:3: expected \{\"turns\""):
            read_conversations([path])
    with pytest.raises(InvalidRequest, match="prompts"):
        read_conversations([tmp_path / "none"])


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ([], "prompts"),
        (["--prompts", "p"], "out"),
        (["--prompts", "p", "--answers-only"], "out"),
        (["--prompts", "p", "--out", "o", "--answers-only", "--from-answers"], "answers-only"),
        (["--prompts", "p", "--out", "o", "--part", "2/2"], "part"),
        (["--prompts", "p", "--out", "o", "--layers", "1,x"], "layers"),
        (["--prompts", "p", "--out", "o", "--samples", "0"], "samples"),
        (["--prompts", "p", "--out", "o", "--greedy-share", "2"], "greedy_share"),
        (["--prompts", "p", "--out", "o", "--max-length", "1"], "max_length"),
        (["--prompts", "p", "--out", "o", "--top-p", "0"], "top_p"),
    ],
)
def test_options_are_refused_by_name(arguments: list[str], field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}"):
        parse(arguments)


def test_layers_and_kv_room_are_refused_by_name(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capture(prompts, tmp_path / "cache", "--kv-tokens", "32") == 2
    assert "kv_tokens" in capsys.readouterr().err
    assert capture(prompts, tmp_path / "cache", "--layers", "0,9") == 2
    assert "layers: expected different layers" in capsys.readouterr().err


def test_a_recipes_seeds_differ_by_conversation_and_turn() -> None:
    recipe = Recipe(seed=1)
    talks = [Conversation((str(i), "b")) for i in range(20)]
    seeds = {recipe.sampling(talk, turn, 100).seed for talk in talks for turn in range(2)}
    assert len(seeds) == 40
    assert recipe.sampling(talks[0], 0, 7).max_tokens == 7
