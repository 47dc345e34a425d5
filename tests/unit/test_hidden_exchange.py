"""Drafters to and from others' folders. That ``speculators`` computes the same is for ``bench.interchange``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from paceline.drafters.hidden import checkpoint, exchange
from paceline.drafters.hidden.__main__ import main
from paceline.drafters.hidden.config import HiddenConfig
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.drafters.hidden.target_weights import TargetWeights
from paceline.engine.models import LocalModel
from paceline.engine.numerics import fingerprint
from paceline.speculation.errors import InvalidRequest, Unsupported
from safetensors.torch import load_file, save_file

from tests.unit.hidden_kit import CONFIG, VOCAB, dflash, small_drafter, write_target

WHOLE = dataclasses.replace(CONFIG, draft_vocab_size=VOCAB)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalModel:
    monkeypatch.setenv("PACELINE_HOME", str(tmp_path / "home"))
    return LocalModel(write_target(tmp_path / "target"), "tiny")


def _drafter(config: HiddenConfig, target: LocalModel) -> HiddenDrafter:
    """With the target's own embedding and head, which random drafters don't have."""
    weights = TargetWeights(target.folder)
    like = small_drafter(config)
    drafter = HiddenDrafter(config, like.vocabulary, weights.embedding().float(), weights.head().float())
    drafter.load_state_dict(like.state_dict())
    return drafter.eval()


def _out(tmp_path: Path, drafter: HiddenDrafter, form: str) -> Path:
    folder = tmp_path / form
    exchange.export(drafter, folder, form=form, verifier="owner/name", dtype=torch.float32)
    return folder


@pytest.mark.parametrize(
    ("config", "form"),
    [
        (CONFIG, "speculators"),
        (WHOLE, "speculators"),
        (dflash(), "speculators"),
        (WHOLE, "deepspec"),
        (dflash(WHOLE, sample_from_anchor=True), "deepspec"),
    ],
)
def test_a_drafter_comes_back_from_others_folders(
    tmp_path: Path, target: LocalModel, config: HiddenConfig, form: str
) -> None:
    drafter = _drafter(config, target)
    again = exchange.imported(_out(tmp_path, drafter, form), target)
    named = {"target_model": "tiny", "target_fingerprint": fingerprint(target.folder)}
    if form == "deepspec":
        named["target_architecture"] = ""
    assert again.config == dataclasses.replace(config, **named)  # type: ignore[arg-type]  # all of them str
    assert again.vocabulary.target_ids.tolist() == drafter.vocabulary.target_ids.tolist()
    state = drafter.state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_speculators_gets_the_heads_rows_of_a_reduced_vocabulary(tmp_path: Path, target: LocalModel) -> None:
    drafter = _drafter(CONFIG, target)
    tensors = load_file(_out(tmp_path, drafter, "speculators") / checkpoint.WEIGHTS)
    assert torch.equal(tensors["lm_head.weight"], drafter.lm_head)
    assert tensors["t2d"].sum() == len(tensors["d2t"]) == CONFIG.draft_vocab_size
    config = json.loads((tmp_path / "speculators" / "config.json").read_text())
    assert config["speculators_config"]["verifier"]["name_or_path"] == "owner/name"


@pytest.mark.parametrize(("config", "field"), [(CONFIG, "draft_vocab_size"), (dflash(WHOLE), "sample_from_anchor")])
def test_what_deepspec_cannot_hold_is_refused(
    tmp_path: Path, target: LocalModel, config: HiddenConfig, field: str
) -> None:
    with pytest.raises(Unsupported) as refused:
        _out(tmp_path, _drafter(config, target), "deepspec")
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"architectures": ["Gemma4DSparkModel"]}, "architectures"),
        ({"markov_head_type": "gated"}, "markov_head_type"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"target_layer_ids": None}, "target_layer_ids"),
    ],
)
def test_deepspecs_other_drafters_are_refused_by_name(
    tmp_path: Path, target: LocalModel, change: dict[str, Any], field: str
) -> None:
    folder = _out(tmp_path, _drafter(WHOLE, target), "deepspec")
    data = json.loads((folder / "config.json").read_text()) | change
    if change.get(field, "") is None:
        del data[field]
    with pytest.raises(InvalidRequest) as refused:
        exchange.config_of(data)
    assert refused.value.field == field


def test_a_drafter_of_another_target_is_refused(tmp_path: Path, target: LocalModel) -> None:
    folder = _out(tmp_path, _drafter(CONFIG, target), "speculators")
    tensors = load_file(folder / checkpoint.WEIGHTS)
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1}, folder / checkpoint.WEIGHTS)
    with pytest.raises(Unsupported, match=r"lm_head\.weight"):
        exchange.imported(folder, target)
    data = json.loads((folder / "config.json").read_text())
    data["transformer_layer_config"]["vocab_size"] = 128
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(InvalidRequest, match="drafter"):
        exchange.imported(folder, target)


def test_out_and_in_from_the_command_line(
    tmp_path: Path, target: LocalModel, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(CONFIG, target_fingerprint=fingerprint(target.folder))
    drafter = _drafter(config, target)
    checkpoint.save(tmp_path / "own", drafter, dtype=torch.float32)
    common = ["--model", str(target.folder), "--dtype", "float32"]
    assert main(["export", str(tmp_path / "own"), str(tmp_path / "theirs"), *common]) == 0
    assert main(["import", str(tmp_path / "theirs"), str(tmp_path / "again"), *common]) == 0
    again = checkpoint.load(tmp_path / "again", target, dtype=torch.float32)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, drafter.state_dict()[name]), name
    assert main(["export", str(tmp_path / "own"), str(tmp_path / "no"), "--format", "deepspec", *common]) == 1
    assert "draft_vocab_size" in capsys.readouterr().err
