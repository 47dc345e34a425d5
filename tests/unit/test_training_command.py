"""``python -m paceline.training``: what it refuses, and what a quick run asks for first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from paceline.speculation.errors import Unavailable
from paceline.training.__main__ import main
from paceline.training.capture.options import parse
from paceline.training.prompts import DOMAINS
from paceline.training.quick import Interrupted, Quick, prepare

from tests.unit.training_kit import recipe_for, write_cache


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ([], "cache"),
        (["--quick", "--cache", "x"], "quick"),
        (["--cache", "nowhere", "--steps", "1", "--minutes", "1"], "steps"),
        (["--cache", "nowhere"], "nowhere"),
        (["--resume", "--cache", "nowhere"], "resume"),
    ],
)
def test_refusals_are_by_name(
    tmp_path: Path, arguments: Sequence[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "run"), "--model", str(tmp_path)]) == 1
    assert field in capsys.readouterr().err


def test_a_run_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_HOME", str(tmp_path / "home"))
    recipe_for(tmp_path)
    cache, out = write_cache(tmp_path / "cache"), tmp_path / "run"
    options = ["--cache", str(cache), "--out", str(out)]
    shape = ["--block-size", "3", "--draft-vocab", "24", "--mask-token-id", "63", "--markov-rank", "4"]
    assert main([*options, "--model", str(tmp_path / "target"), "--steps", "3", *shape]) == 0
    assert "held out: τ" in capsys.readouterr().err
    config = json.loads((out / "drafter" / "config.json").read_text())
    assert (config["block_size"], config["draft_vocab_size"], config["markov_rank"]) == (3, 24, 4)
    assert main([*options, "--resume"]) == 0  # at its end already
    assert "going on after step 3" in capsys.readouterr().err


def test_a_quick_run_captures_greedy_answers_to_prompts_of_every_domain(tmp_path: Path) -> None:
    asked: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> int:
        asked.append(command)
        return 0

    cache = prepare(tmp_path, "demo", 2, print, how=Quick(prompts=3, max_tokens=50), run=run)
    options = parse(list(asked[0][3:]))  # as the capture itself understands it
    assert options.cache == cache
    assert [path.stem for path in options.prompts] == list(DOMAINS)
    assert all(len(path.read_text().splitlines()) == 3 for path in options.prompts)
    assert (options.recipe.temperature, options.recipe.max_tokens, options.threads) == (0.0, 50, 2)


@pytest.mark.parametrize(("code", "error"), [(1, Unavailable), (130, Interrupted)])
def test_a_capture_that_fails_ends_a_quick_run(tmp_path: Path, code: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        prepare(tmp_path, "demo", None, print, how=Quick(prompts=1), run=lambda command: code)
