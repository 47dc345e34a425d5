"""Prompts of a folder, and their answers' rounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paceline.cli.asking import read_prompts
from paceline.speculation.errors import InvalidRequest


def write(folder: Path, name: str, *lines: object) -> None:
    folder.joinpath(name).write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")


def test_prompts_are_read_by_file(tmp_path: Path) -> None:
    write(tmp_path, "math.jsonl", {"turns": ["a", "b"]}, {"turns": ["c"], "more": 1})
    write(tmp_path, "code.jsonl", {"turns": ["d"]}, {"turns": ["e"]})
    tmp_path.joinpath("README.md").write_text("not prompts")
    assert read_prompts(tmp_path) == {"code": [("d",), ("e",)], "math": [("a", "b"), ("c",)]}
    assert read_prompts(tmp_path, limit=1) == {"code": [("d",)], "math": [("a", "b")]}


@pytest.mark.parametrize("line", [{"prompt": "a"}, {"turns": []}, {"turns": "a"}, {"turns": [""]}, {"turns": [1]}, []])
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: object) -> None:
    write(tmp_path, "math.jsonl", {"turns": ["a"]}, line)
    with pytest.raises(InvalidRequest, match=r"math\.jsonl, line 2"):
        read_prompts(tmp_path)


def test_a_folder_without_prompts_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="prompts: expected a folder of"):
        read_prompts(tmp_path / "nowhere")
    tmp_path.joinpath("empty.jsonl").write_text("\n")
    with pytest.raises(InvalidRequest, match=r"none in .*empty\.jsonl"):
        read_prompts(tmp_path)
