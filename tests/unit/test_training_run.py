"""Whole runs on a tiny target: they learn, they go on bit for bit after a kill, they refuse what does not fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from paceline.drafters.hidden import checkpoint
from paceline.engine import models
from paceline.engine.numerics import fingerprint
from paceline.engine.quantised import scheme_of
from paceline.speculation.errors import InvalidRequest
from paceline.training import setup
from paceline.training.recipe import Recipe
from paceline.training.samples import SampleSet, anchors_of
from paceline.training.trainer import DRAFTER, Report, weights_at

from tests.unit.training_kit import losses, recipe_for, surroundings, write_cache


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_HOME", str(tmp_path / "home"))


def test_a_run_learns_and_its_drafter_loads(tmp_path: Path) -> None:
    recipe, at = recipe_for(tmp_path, steps=150), surroundings(tmp_path)
    trainer = setup.begin(recipe, at)
    before = trainer.measure()
    found = losses(trainer)
    after = trainer.measure()
    assert np.mean(found[-10:]) < 0.5 * np.mean(found[:5])
    assert before.tau < 1.5
    assert after.tau > 3.5  # of 4: counting is easy
    assert 1.0 <= after.tau_sampled <= 4.0
    assert all(0.8 < each <= 1.0 for each in after.per_position)
    drafter = checkpoint.load(at.out / DRAFTER, models.resolve(recipe.model))
    assert drafter.config == trainer.drafter.config
    assert drafter.config.target_layer_ids == (0, 2)


@pytest.mark.parametrize("kind", ["dspark", "dflash"])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    recipe = recipe_for(tmp_path, drafter=kind)
    whole = losses(setup.begin(recipe, surroundings(tmp_path, "whole")))
    assert len(whole) == 12
    at = surroundings(tmp_path, "killed")
    trainer = setup.begin(recipe, at)

    def killed(report: Report) -> None:
        if report.step == 5:
            trainer.save()
        if report.step == 8:  # three steps after the last state, in the middle of things
            raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        trainer.run(killed)
    again = setup.resumed(at)
    assert again.step == 5
    assert losses(again) == whole[5:]
    logged = [json.loads(line) for line in (at.out / "log.jsonl").read_text().splitlines()]
    assert [each["step"] for each in logged] == list(range(1, 13))
    assert [each["loss"] for each in logged] == whole
    one, other = (torch.load(tmp_path / name / "state.pt")["weights"] for name in ("whole", "killed"))
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_stopping_saves(tmp_path: Path) -> None:
    at = surroundings(tmp_path)
    trainer = setup.begin(recipe_for(tmp_path), at)
    trainer.run(lambda report: trainer.stop() if report.step == 4 else None)
    assert setup.resumed(at).step == 4


def test_a_resumed_run_takes_more_caches_but_no_others(tmp_path: Path) -> None:
    at = surroundings(tmp_path)
    trainer = setup.begin(recipe_for(tmp_path, steps=6), at)
    trainer.run(lambda report: trainer.stop() if report.step == 2 else None)
    more = setup.resumed(surroundings(tmp_path, caches=2))
    assert len(more.samples) == 180
    assert set(trainer.samples.held_out) < set(more.samples.held_out)
    assert len(losses(more)) == 4
    write_cache(tmp_path / "other", samples=50)
    with pytest.raises(InvalidRequest, match="cache"):
        setup.resumed(dataclasses.replace(at, caches=[tmp_path / "other"]))


def test_every_sample_comes_once_an_epoch_in_an_order_of_seed_and_step(tmp_path: Path) -> None:
    samples = SampleSet([write_cache(tmp_path / "cache")])
    count = len(samples.trained)
    seen = [index for step in range(count) for index in samples.order(3, step, 2)]
    assert sorted(seen[:count]) == sorted(seen[count:]) == list(samples.trained)
    assert seen[:count] != seen[count:]
    assert samples.order(3, 5, 2) == seen[10:12]
    assert samples.order(4, 5, 2) != seen[10:12]
    assert samples.held_out
    assert not set(samples.held_out) & set(samples.trained)


def test_a_trained_drafter_is_trained_on(tmp_path: Path) -> None:
    recipe, at = recipe_for(tmp_path, steps=60), surroundings(tmp_path)
    first = setup.begin(recipe, at)
    before = losses(first)
    more = dataclasses.replace(recipe, steps=3, init=str(at.out / DRAFTER), draft_vocab=9, block_size=5)
    second = setup.begin(more, surroundings(tmp_path, "more"))
    assert second.drafter.config == first.drafter.config  # not the shape asked for
    found = losses(second)
    assert max(found) < 0.7 * before[0]
    write_cache(tmp_path / "others", layer_ids=(0, 3))
    others = dataclasses.replace(at, caches=[tmp_path / "others"], out=tmp_path / "no")
    with pytest.raises(InvalidRequest, match="layers"):
        setup.begin(more, others)


def test_another_targets_states_are_refused(tmp_path: Path) -> None:
    recipe, at = recipe_for(tmp_path), surroundings(tmp_path)
    own, eight = (fingerprint(tmp_path / "target", None, scheme_of(how)) for how in ("", "int8"))
    for name, said in (("own", own), ("eight", eight), ("foreign", "f" * 64)):
        write_cache(tmp_path / name, fingerprint=said)
    setup.begin(recipe, dataclasses.replace(at, caches=[tmp_path / "own", tmp_path / "eight"]))
    with pytest.raises(InvalidRequest, match="cache: expected states of target"):
        setup.begin(recipe, dataclasses.replace(at, caches=[tmp_path / "foreign"]))


def test_anchors_stand_before_tokens_that_count(tmp_path: Path) -> None:
    sample = SampleSet([write_cache(tmp_path / "cache")])[0]
    assert sample is not None
    first = int(np.flatnonzero(sample.loss_mask)[0])
    everywhere = anchors_of(sample, None, None)
    assert everywhere.tolist() == list(range(first - 1, len(sample.input_ids) - 1))
    some = anchors_of(sample, 4, np.random.default_rng(0))
    assert len(set(some.tolist())) == 4
    assert set(some.tolist()) <= set(everywhere.tolist())
    assert some.tolist() == anchors_of(sample, 4, np.random.default_rng(0)).tolist()


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    recipe, at = recipe_for(tmp_path), surroundings(tmp_path)
    with pytest.raises(InvalidRequest, match="init_layers"):
        setup.begin(dataclasses.replace(recipe, init_layers=(1, 9)), at)
    with pytest.raises(InvalidRequest, match="init_layers"):
        setup.begin(dataclasses.replace(recipe, init_layers=(1,)), at)
    with pytest.raises(InvalidRequest, match="speculators_model_type"):
        setup.begin(dataclasses.replace(recipe, drafter="eagle3"), at)
    setup.begin(recipe, at).save()
    with pytest.raises(InvalidRequest, match="out"):
        setup.begin(recipe, at)
    with pytest.raises(InvalidRequest, match="resume"):
        setup.resumed(surroundings(tmp_path, "nothing"))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "steps"),
        ({"steps": 1, "minutes": 1.0}, "steps"),
        ({"steps": 1, "init": "x"}, "init"),
        ({"steps": 0}, "steps"),
    ],
)
def test_impossible_recipes_are_refused_by_name(fields: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Recipe(**fields)  # type: ignore[arg-type]  # what a caller might say
    assert refused.value.field == name


def test_learning_rate_and_distillation_follow_the_run() -> None:
    recipe = Recipe(steps=100, warm_up=10, learning_rate=1.0, floor=0.1, distillation=0.8)
    assert recipe.rate(0, 0.0) == pytest.approx(0.1)
    assert recipe.rate(9, 0.0) == pytest.approx(1.0)
    assert recipe.rate(50, 0.5) == pytest.approx(0.55)
    assert recipe.rate(100, 1.0) == pytest.approx(0.1)
    assert [weights_at(recipe, at).distillation for at in (0.0, 0.5, 1.0)] == pytest.approx([0.8, 0.4, 0.0])


def test_layers_copied_by_default_are_the_targets_last() -> None:
    assert Recipe(steps=1, layers=2).copied_layers(30) == (28, 29)
    assert Recipe(steps=1, layers=2, init="random").copied_layers(30) is None
    assert Recipe(steps=1, layers=2, init_layers=(3, 29)).copied_layers(30) == (3, 29)
