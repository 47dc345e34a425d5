"""``paceline cache``: sizes before writing, corruption by name, and the capture it becomes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from paceline.cache.target import TargetCache, TargetCacheWriter, seal
from paceline.cache.target.layout import INDEX, Shape
from paceline.cache.target.plan import DEEPSPEC_SOURCE, Plan
from paceline.cli.main import paceline

from tests.unit.target_cache_kit import SPEC, sample


def run(*arguments: object) -> Result:
    return CliRunner().invoke(paceline, ["cache", *map(str, arguments)])


def test_deepspecs_defaults_are_38_terabytes() -> None:
    result = run("plan", "--model", "Qwen/Qwen3-4B")
    assert result.exit_code == 0, result.output
    assert "a token    30,726 bytes" in result.output
    assert "size       38 TB in 554 shards of 64 GiB" in result.output
    assert "tokens     1,237,000,000: DeepSpec's default data, by the “roughly 38 TB” that its README" in result.output
    assert json.loads(run("plan", "--model", "Qwen/Qwen3-4B", "--json").stdout)["tokens_source"] == DEEPSPEC_SOURCE
    assert json.loads(run("plan", "--tokens", "1", "--json").stdout)["tokens_source"] is None


def test_a_plan_is_what_a_cache_takes(tmp_path: Path) -> None:
    lengths = [5, 9, 2]
    with TargetCacheWriter(tmp_path, SPEC) as writer:
        for key, length in enumerate(lengths):
            writer.write(sample(key, length))
    seal(tmp_path)
    planned = Plan(SPEC.shape, sum(lengths), len(lengths))
    assert (tmp_path / "shard-00000.bin").stat().st_size == planned.data_bytes
    records = ("samples.idx", "samples.crc", "writer-00000.journal")
    claim = planned.record_bytes // (2 * len(lengths))
    assert sum((tmp_path / name).stat().st_size for name in records) == planned.record_bytes + claim
    assert INDEX.itemsize == 56


def test_sizes_are_read_from_a_folder_or_given(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 3, "hidden_size": 7}}))
    facts = json.loads(run("plan", "--model", tmp_path, "--layers", "4", "--tokens", "11", "--json").stdout)
    assert facts["total_bytes"] == Shape(4, 7).token_bytes * 11
    facts = json.loads(run("plan", "--hidden-size", "64", "--samples", "3", "--length", "5", "--json").stdout)
    assert (facts["tokens"], facts["samples"], facts["shards"]) == (15, 3, 1)
    assert facts["token_bytes"] == 6 + 6 * 64 * 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "nobody/knows"], "hidden-size"),
        (["--layers", "32"], "at most 31"),
        (["--samples", "3"], "--samples and --length together"),
    ],
)
def test_plans_that_cannot_be_made_are_refused(arguments: list[str], told: str) -> None:
    result = run("plan", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_cache_that_does_not_fit_is_told_before_it_is_written(tmp_path: Path) -> None:
    fits = run("plan", "--tokens", "1", "--out", tmp_path / "not" / "there")
    assert fits.exit_code == 0, fits.output
    assert not (tmp_path / "not").exists()
    result = run("plan", "--tokens", str(10**15), "--out", tmp_path)
    assert result.exit_code == 1
    assert "too little" in result.stderr


def test_verify_names_what_is_corrupt(tmp_path: Path) -> None:
    with TargetCacheWriter(tmp_path, SPEC, shard_bytes=1) as writer:
        for key in range(3):
            writer.write(sample(key))
    seal(tmp_path)
    sound = run("verify", tmp_path)
    assert sound.exit_code == 0, sound.output
    assert "3 samples" in sound.output
    shard = bytearray((tmp_path / "shard-00001.bin").read_bytes())
    shard[-1] ^= 1
    (tmp_path / "shard-00001.bin").write_bytes(shard)
    result = run("verify", tmp_path)
    assert result.exit_code == 1
    assert "sample 1 in shard-00001.bin: target_last_hidden_states: checksum" in result.stdout
    assert "1 of 3 samples are lost" in result.stderr
    (tmp_path / "shard-00002.bin").unlink()
    assert "shard-00002.bin: it is missing" in run("verify", tmp_path).stdout
    assert run("verify", tmp_path / "none").exit_code == 2


def test_capture_becomes_the_job(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"turns": ["Hello"]}\n')
    command = [sys.executable, "-m", "paceline.cli.main", "cache", "capture"]
    options = ["--model", "fake", "--prompts", "p.jsonl", "--out", "cache", "--max-tokens", "4"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "cache: 1 samples of" in done.stderr
    assert len(TargetCache.open(tmp_path / "cache")) == 1
    wrong = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert wrong.returncode == 2
    assert "paceline cache capture: prompts: expected a file at least" in wrong.stderr
