"""Drafter folders: what is saved comes back, and only for the target it was trained for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from paceline.drafters.hidden import checkpoint
from paceline.drafters.hidden.loading import read_projector
from paceline.drafters.hidden.target_weights import TargetWeights
from paceline.engine.models import LocalModel
from paceline.engine.numerics import fingerprint
from paceline.speculation.errors import InvalidRequest, Unsupported

from tests.unit.eagle_kit import small_eagle
from tests.unit.hidden_kit import CONFIG, HIDDEN, VOCAB, dflash, small_drafter, write_target


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalModel:
    monkeypatch.setenv("PACELINE_HOME", str(tmp_path / "home"))
    return LocalModel(write_target(tmp_path / "target"), "tiny")


@pytest.mark.parametrize("config", [CONFIG, dflash(), dataclasses.replace(CONFIG, draft_vocab_size=VOCAB)])
def test_a_drafter_comes_back_with_the_targets_embedding(tmp_path: Path, target: LocalModel, config: object) -> None:
    assert isinstance(config, type(CONFIG))
    drafter = small_drafter(dataclasses.replace(config, target_fingerprint=fingerprint(target.folder)))
    checkpoint.save(tmp_path / "drafter", drafter, dtype=torch.float32)
    again = checkpoint.load(tmp_path / "drafter", target, dtype=torch.float32)
    assert again.config == drafter.config
    assert again.vocabulary.target_ids.tolist() == drafter.vocabulary.target_ids.tolist()
    state = drafter.state_dict()
    assert state.keys() == again.state_dict().keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert not {"embed_tokens", "lm_head"} & state.keys()
    embedding = TargetWeights(target.folder).embedding().float()
    assert torch.equal(again.embed_tokens, embedding)
    assert torch.equal(again.lm_head, embedding[again.vocabulary.target_ids])


def test_int8_is_close_and_half_the_size(tmp_path: Path, target: LocalModel) -> None:
    drafter = small_drafter(dataclasses.replace(CONFIG, intermediate_size=4096))
    checkpoint.save(tmp_path / "wide", drafter)
    checkpoint.save(tmp_path / "narrow", drafter, int8=True)
    again = checkpoint.load(tmp_path / "narrow", target, dtype=torch.float32)
    for name, tensor in drafter.state_dict().items():
        step = tensor.abs().amax() / 127
        assert float((again.state_dict()[name] - tensor).abs().max()) <= float(step), name
    sizes = [(tmp_path / name / checkpoint.WEIGHTS).stat().st_size for name in ("wide", "narrow")]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_projector_is_the_same_read_alone(tmp_path: Path) -> None:
    drafter, folder = small_drafter(dataclasses.replace(CONFIG, target_fingerprint="of the target")), tmp_path
    scales = {"fc.weight.int8_scale": torch.rand(HIDDEN) + 0.5}
    matrix = {"fc.weight": torch.randint(-127, 128, drafter.fc.weight.shape, dtype=torch.int8)}
    checkpoint.write(folder, drafter.config.to_json(), drafter.state_dict() | matrix | scales)
    whole, alone = checkpoint.read_tensors(folder), checkpoint.read_tensors(folder, ("fc.weight", "no such"))
    assert list(alone) == ["fc.weight"]
    assert torch.equal(alone["fc.weight"], whole["fc.weight"])
    assert whole["fc.weight"].dtype == torch.float32
    projector = read_projector(folder)
    assert torch.equal(projector.weight, whole["fc.weight"])
    assert projector.norm is not None
    assert torch.equal(projector.norm, whole["hidden_norm.weight"])
    assert projector.target == "of the target"


def test_another_target_is_refused(tmp_path: Path, target: LocalModel) -> None:
    drafter = small_drafter(dataclasses.replace(CONFIG, target_fingerprint=fingerprint(target.folder)))
    checkpoint.save(tmp_path / "drafter", drafter)
    other = LocalModel(write_target(tmp_path / "other", seed=9), "other")
    with pytest.raises(InvalidRequest, match="drafter: expected a drafter of other"):
        checkpoint.load(tmp_path / "drafter", other)
    with pytest.raises(InvalidRequest, match="drafter"):  # fewer layers are another model
        checkpoint.load(tmp_path / "drafter", dataclasses.replace(target, layers=2))


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path, target: LocalModel) -> None:
    drafter = small_drafter()
    tensors = dict(drafter.state_dict()) | {"d2t": drafter.vocabulary.offsets()}
    folder, config = tmp_path / "drafter", CONFIG.to_json()
    checkpoint.write(folder, config, {name: t for name, t in tensors.items() if name != "fc.weight"})
    with pytest.raises(InvalidRequest, match=r"fc\.weight"):
        checkpoint.load(folder, target)
    checkpoint.write(folder, config, tensors | {"more": torch.zeros(1)})
    with pytest.raises(InvalidRequest, match="more"):
        checkpoint.load(folder, target)
    checkpoint.write(folder, config, tensors | {"fc.weight": torch.zeros(2, HIDDEN)})
    with pytest.raises(InvalidRequest, match=r"fc\.weight"):
        checkpoint.load(folder, target)
    checkpoint.write(folder, config, {name: t for name, t in tensors.items() if name != "d2t"})
    with pytest.raises(InvalidRequest, match="d2t"):
        checkpoint.load(folder, target)


def test_a_folder_that_is_no_drafter_is_refused(tmp_path: Path, target: LocalModel) -> None:
    with pytest.raises(InvalidRequest, match=r"config\.json"):
        checkpoint.load(tmp_path, target)
    (tmp_path / "config.json").write_text(json.dumps({"speculators_model_type": "medusa"}))
    with pytest.raises(Unsupported, match="speculators_model_type"):
        checkpoint.load(tmp_path, target)


def test_an_eagle3_drafter_is_refused_where_only_the_others_do(tmp_path: Path, target: LocalModel) -> None:
    checkpoint.save(tmp_path, small_eagle())
    with pytest.raises(Unsupported, match="only dspark and dflash"):
        checkpoint.load(tmp_path, target)


def test_an_untied_head_is_read_from_its_own_tensor(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    head, embedding = torch.randn(4, 2), torch.randn(4, 2)
    save_file({"model.embed_tokens.weight": embedding, "lm_head.weight": head}, tmp_path / "model.safetensors")
    weights = TargetWeights(tmp_path)
    assert torch.equal(weights.head(), head)
    assert torch.equal(weights.embedding(), embedding)
