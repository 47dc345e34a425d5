"""One flipped byte costs one sample, which is named; the cache it was copied from stays as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from paceline.cache.target import TargetCache
from paceline.cache.target.verify import verify
from paceline.training import setup

from bench.flipped import flip, goes_on
from tests.unit.training_kit import losses, recipe_for, surroundings, write_cache


def test_the_others_are_read_and_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_HOME", str(tmp_path / "home"))
    cache = write_cache(tmp_path / "whole")
    planted = flip(cache, tmp_path / "cache0", seed=0)
    report = verify(TargetCache.open(planted.folder))
    assert [(each.sample_id, each.shard, each.part) for each in report.corrupt] == [
        (planted.sample_id, planted.shard, "target_hidden_states")
    ]
    assert goes_on(planted) == planted.samples - 1 == len(TargetCache.open(cache)) - 1
    assert verify(TargetCache.open(cache)).sound
    said: list[str] = []
    at = dataclasses.replace(surroundings(tmp_path), say=said.append)
    trainer = setup.begin(recipe_for(tmp_path, steps=planted.steps), at)
    assert len(losses(trainer)) == planted.steps
    [line] = [line for line in said if line.startswith("left out")]
    assert f"sample {planted.sample_id} in {planted.shard}: target_hidden_states" in line


def test_another_sample_that_is_lost_is_no_success(tmp_path: Path) -> None:
    planted = flip(write_cache(tmp_path / "whole"), tmp_path / "copy", seed=0)
    with pytest.raises(RuntimeError, match=r"expected to lose sample \d+, lost"):
        goes_on(dataclasses.replace(planted, sample_id=planted.sample_id + 1))
