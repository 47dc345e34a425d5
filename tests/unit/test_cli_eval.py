"""``paceline eval`` against a scripted server, and the report by itself."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from paceline.cli.asking import Answered, Ask
from paceline.cli.eval_report import PLAIN, Evaluation, Prompt
from paceline.cli.main import paceline
from paceline.speculation.figures import RoundSeen
from paceline.v1 import generation_pb2
from paceline_client import Model

from tests.unit.cli_scripted import ACCEPTED, BONUS, CORRECTED, TARGET_ONLY, Scripted, completed, started, tokens


def drafting(request: generation_pb2.GenerateRequest, context: Any) -> Iterator[generation_pb2.GenerateResponse]:
    """Six tokens: one by one without drafts, in three rounds with them."""
    yield started()
    if request.speculation.mode == generation_pb2.SPECULATION_MODE_OFF:
        for index in range(6):
            yield tokens(index, "x", TARGET_ONLY)
    else:
        rounds = (
            tokens(0, "x", TARGET_ONLY),
            tokens(1, "xx", ACCEPTED, CORRECTED, drafted=3),
            tokens(3, "xxx", ACCEPTED, ACCEPTED, BONUS, drafted=2),
        )
        rounds[1].tokens.confidence.extend((0.9, 0.8, 0.7))
        rounds[2].tokens.confidence.extend((0.9, 0.8))
        yield from rounds
    end = completed(6)
    end.completed.speculation.draft_wait_us = 0 if request.speculation.mode == 2 else 3000
    end.completed.speculation.verify_wait_us = 60_000
    yield end


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted(drafting) as server:
        yield server


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for domain in ("math", "chat"):
        lines = [json.dumps({"turns": [f"{domain} {number}", "and then?"]}) for number in range(3)]
        folder.joinpath(f"{domain}.jsonl").write_text("\n".join(lines))
    return folder


def invoke(server: Scripted, prompts: Path, *arguments: str) -> Result:
    return CliRunner().invoke(paceline, ["eval", str(prompts), "--address", server.address, *arguments])


def test_every_prompt_is_asked_every_way_and_the_figures_are_told(server: Scripted, prompts: Path) -> None:
    result = invoke(server, prompts, "--limit", "2", "--speculation", "3", "--max-tokens", "6")
    assert result.exit_code == 0, result.output
    assert len(server.requests) == 2 * 2 * 3
    ways = [(each.speculation.mode, each.speculation.drafter) for each in server.requests[:3]]
    off, fixed = generation_pb2.SPECULATION_MODE_OFF, generation_pb2.SPECULATION_MODE_FIXED
    assert ways == [(off, ""), (fixed, "ngram"), (fixed, "model")]
    assert {each.speculation.max_draft_tokens for each in server.requests[1:3]} == {3}
    lines = result.stdout.splitlines()
    assert lines[0].startswith("m, 4 prompts, greedy, agreement mode, K = 3, 6 tokens at most, one session")
    lengths, totals, positions = [line.split() for line in lines if line.startswith("ngram")]
    assert lengths == ["ngram", *["2.50", "(2.00)"] * 3]
    assert totals[:7] == ["ngram", "60", "%", "60", "%", "0.10", "–"]
    assert positions == ["ngram", "100", "%", "50", "%", "–"]
    assert "0 of 8 answers differ" in result.stdout


def test_figures_are_written_as_json_and_markdown(server: Scripted, prompts: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    result = invoke(server, prompts, "--drafter", "ngram", "--markdown", "--json", str(file), "--together", "3")
    assert result.exit_code == 0, result.output
    assert "| ngram | 2.50 (2.00) | 2.50 (2.00) | 2.50 (2.00) |" in result.stdout
    record = json.loads(file.read_text())
    assert record["prompts"] == {"chat": 3, "math": 3}
    math = record["drafters"]["ngram"]["domains"]["math"]
    assert math["tau"] == 2.5
    assert math["acceptance_by_position"][:2] == [1.0, 0.5]
    assert math["acceptance_over_drafted"] == pytest.approx(3 / 5)
    assert record["drafters"]["ngram"]["calibration"]["ece"] is not None


def test_turns_go_on_with_the_answers_before_them(server: Scripted, prompts: Path) -> None:
    invoke(server, prompts, "--drafter", "ngram", "--limit", "1", "--turns", "2")
    second = [each for each in server.requests if len(each.chat.messages) == 3]
    assert len(second) == 2 * 2
    assert [message.role for message in second[0].chat.messages] == ["user", "assistant", "user"]
    assert second[0].chat.messages[1].content == "x" * 6


def test_pictures_are_drawn(server: Scripted, prompts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plots"
    result = invoke(server, prompts, "--limit", "1", "--plots", str(folder))
    assert result.exit_code == 0, result.output
    for name in ("acceptance.png", "survival.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_pictures_without_the_library_are_refused_before_anything_is_asked(
    server: Scripted, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    result = invoke(server, prompts, "--plots", "somewhere")
    assert result.exit_code == 2
    assert "pip install 'paceline[eval]'" in result.output
    assert not server.requests


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--drafter", "eagle"), "drafters of m (ngram, model)"),
        (("--model", "other"), "--model: expected one of m"),
        (("--speculation", "off"), "--speculation"),
        (("--speculation", "some"), "--speculation"),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    server: Scripted, prompts: Path, arguments: tuple[str, ...], named: str
) -> None:
    result = invoke(server, prompts, *arguments)
    assert (result.exit_code, named in result.output) == (2, True), result.output


def test_a_server_that_fails_is_told_in_its_own_words(prompts: Path) -> None:
    def failing(request: generation_pb2.GenerateRequest, context: Any) -> Iterator[generation_pb2.GenerateResponse]:
        yield started()
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "max_tokens: expected fewer")

    with Scripted(failing) as server:
        result = invoke(server, prompts, "--together", "2")
    assert result.exit_code in {1, 2}
    assert "max_tokens: expected fewer" in result.output


def test_a_folder_without_prompts_is_named(server: Scripted, tmp_path: Path) -> None:
    result = invoke(server, tmp_path)
    assert result.exit_code == 2
    assert "a folder of .jsonl files" in result.output


# The report ---------------------------------------------------------------------------------------------------------

MODEL = Model("m", "f", "c", 2048, ("d",), 1, 1, cost_curve=((1, 0.01), (5, 0.014), (9, 0.018)))


def answered(*rounds: RoundSeen, draft_s: float = 0.0, verify_s: float = 0.01) -> Answered:
    count = sum(each.committed for each in rounds)
    seconds = len(rounds) * (draft_s + verify_s)
    return Answered(tuple(range(count)), rounds, seconds, draft_s * len(rounds), verify_s * len(rounds))


def evaluation(ask: Ask | None = None, together: int = 1) -> Evaluation:
    out = Evaluation(speculation="4", together=together, ask=ask or Ask())
    out.begin(MODEL, ("d",))
    one = RoundSeen(0, 0, 0, 1)
    drafted = RoundSeen(4, 4, 1, 2, "d")
    out.prompts = [
        Prompt(
            "a", ("x",), {PLAIN: answered(*[one] * 8), "d": answered(*[drafted] * 4, draft_s=0.002, verify_s=0.014)}
        ),
        Prompt("a", ("never answered",)),
    ]
    return out


def test_the_prediction_follows_from_the_cost_curve_and_what_drafts_cost() -> None:
    cost = evaluation().cost("d")
    assert cost.draft == pytest.approx(0.2)
    assert cost.step == pytest.approx(1.4)
    assert cost.predicted == pytest.approx(2 / 1.6)
    assert cost.measured == pytest.approx(0.08 / 0.064)


def test_sessions_together_share_a_step_of_all_their_rows() -> None:
    assert evaluation(together=1).cost("d").step == pytest.approx(1.4)
    two = evaluation(together=2).cost("d").step
    assert two == pytest.approx((0.018 + 0.001) / 0.011)


def test_without_a_curve_nothing_is_predicted() -> None:
    out = evaluation()
    out.begin(replace(MODEL, cost_curve=()), ("d",))
    assert (out.cost("d").step, out.cost("d").predicted) == (None, None)
    assert "–" in out.text(markdown=False)


def test_only_prompts_that_all_ways_answered_count() -> None:
    out = evaluation()
    assert len(out.complete) == 1
    assert out.differing() == 0
    out.complete[0].answers["d"] = answered(RoundSeen(0, 0, 0, 1))
    assert out.differing() == 1
    assert "1 of 1 answers differ" in out.text(markdown=True)


def test_in_rejection_mode_answers_need_not_be_the_same() -> None:
    out = evaluation(Ask(temperature=1.0, verification_mode="rejection"))
    assert out.differing() is None
    assert "differ" not in out.text(markdown=False)
