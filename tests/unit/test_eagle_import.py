"""EAGLE-3 checkpoints of others become drafters of ours. That ``speculators`` computes the same is for
``bench.interchange``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from paceline.drafters.hidden import checkpoint, exchange
from paceline.drafters.hidden.__main__ import main
from paceline.drafters.hidden.config import RopeScaling
from paceline.drafters.hidden.eagle.checkpoint import load
from paceline.drafters.hidden.eagle.config import DEFAULT_DRAFT_TOKENS, EagleConfig
from paceline.drafters.hidden.eagle.foreign import config_of
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.layers import rotation
from paceline.drafters.hidden.target_weights import TargetWeights
from paceline.engine.models import LocalModel
from paceline.engine.numerics import fingerprint
from paceline.speculation.errors import InvalidRequest, Unsupported
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.unit.eagle_kit import CONFIG, safe_config, safe_tensors, small_eagle, write_config
from tests.unit.hidden_kit import HIDDEN, LAYERS, VOCAB, write_target

WHOLE = dataclasses.replace(CONFIG, draft_vocab_size=VOCAB)
NORMED = dataclasses.replace(CONFIG, norm_before_residual=True, norm_before_fc=True, norm_output=True)
LLAMA3 = dataclasses.replace(CONFIG, rope_theta=500000.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192))
QWEN = dataclasses.replace(CONFIG, model_type="qwen3", fc_norm=True)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalModel:
    monkeypatch.setenv("PACELINE_HOME", str(tmp_path / "home"))
    return LocalModel(write_target(tmp_path / "target"), "tiny")


def same_weights(one: EagleDrafter, other: EagleDrafter) -> None:
    assert one.vocabulary.target_ids.tolist() == other.vocabulary.target_ids.tolist()
    state = other.state_dict()
    assert one.state_dict().keys() == state.keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def brought_in(folder: Path, target: LocalModel) -> EagleDrafter:
    drafter = exchange.imported(folder, target)
    assert isinstance(drafter, EagleDrafter)
    return drafter


@pytest.mark.parametrize("config", [CONFIG, WHOLE, NORMED, QWEN, LLAMA3])
def test_config_survives_its_json(config: EagleConfig) -> None:
    assert EagleConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("config", [CONFIG, WHOLE, NORMED, QWEN, LLAMA3])
def test_a_drafter_comes_back_from_speculators(tmp_path: Path, target: LocalModel, config: EagleConfig) -> None:
    embedding = TargetWeights(target.folder).embedding().float()
    drafter = small_eagle(config, embedding=embedding)
    exchange.export(drafter, tmp_path / "out", form="speculators", verifier="owner/name", dtype=torch.float32)
    again = brought_in(tmp_path / "out", target)
    assert again.config == dataclasses.replace(
        config, target_model="tiny", target_fingerprint=fingerprint(target.folder)
    )
    same_weights(again, drafter)
    assert torch.equal(again.embed_tokens.weight, embedding)
    # which speculators would otherwise leave as memory happens to be
    assert torch.equal(load_file(tmp_path / "out" / checkpoint.WEIGHTS)["embed_tokens.weight"], embedding)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_drafter_comes_from_safeailabs_layout(tmp_path: Path, target: LocalModel, pickled: bool) -> None:
    drafter, folder = small_eagle(), tmp_path / "theirs"
    write_config(folder, safe_config())
    tensors = safe_tensors(drafter) | {"midlayer.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    again = brought_in(folder, target)
    assert again.config == dataclasses.replace(
        CONFIG, target_model="tiny", target_fingerprint=fingerprint(target.folder), max_position_embeddings=2048,
        draft_tokens=DEFAULT_DRAFT_TOKENS,
    )  # fmt: skip
    same_weights(again, drafter)
    checkpoint.save(tmp_path / "ours", again, dtype=torch.float32)
    same_weights(load(tmp_path / "ours", target, dtype=torch.float32), drafter)


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, target: LocalModel) -> None:
    write_config(tmp_path / "theirs", safe_config())
    torch.save({"fc.weight": Path("not a tensor")}, tmp_path / "theirs" / "pytorch_model.bin")
    with pytest.raises(InvalidRequest, match=r"pytorch_model\.bin"):
        exchange.imported(tmp_path / "theirs", target)
    torch.save([torch.zeros(1)], tmp_path / "theirs" / "pytorch_model.bin")
    with pytest.raises(InvalidRequest, match=r"pytorch_model\.bin: expected tensors by name"):
        exchange.imported(tmp_path / "theirs", target)


def test_an_embedding_is_kept_only_if_it_is_not_the_targets(tmp_path: Path, target: LocalModel) -> None:
    drafter, folder = small_eagle(), tmp_path / "theirs"
    write_config(folder, safe_config())
    embedding = TargetWeights(target.folder).embedding().float()
    for given, kept in ((embedding.half(), False), (embedding + 1, True)):
        save_file(safe_tensors(drafter) | {"embed_tokens.weight": given}, folder / "model.safetensors")
        again = brought_in(folder, target)
        torch.testing.assert_close(again.embed_tokens.weight, embedding + 1 if kept else embedding)
        checkpoint.save(tmp_path / "ours", again, dtype=torch.float32)
        assert ("embed_tokens.weight" in load_file(tmp_path / "ours" / checkpoint.WEIGHTS)) == kept
        ours = load(tmp_path / "ours", target, dtype=torch.float32)
        assert torch.equal(ours.embed_tokens.weight, again.embed_tokens.weight)


def test_a_missing_head_is_the_targets(tmp_path: Path, target: LocalModel) -> None:
    exchange.export(small_eagle(), tmp_path / "out", form="speculators", verifier="v", dtype=torch.float32)
    tensors = load_file(tmp_path / "out" / checkpoint.WEIGHTS)
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "out" / checkpoint.WEIGHTS)
    again = brought_in(tmp_path / "out", target)
    head = TargetWeights(target.folder).head().float()
    assert torch.equal(again.lm_head.weight, head[again.vocabulary.target_ids])


def test_layers_of_the_target_are_counted_as_each_layout_does() -> None:
    def ids(data: dict[str, Any]) -> tuple[int, ...]:
        return config_of(data, layers=30).target_layer_ids

    flat = safe_config()
    assert ids(flat | {"eagle_config": None}) == ids(CONFIG.to_json() | {"eagle_aux_hidden_state_layer_ids": None})
    assert ids(flat | {"eagle_config": None}) == (1, 14, 26)  # what goes into layers 2, 15 and 27
    outputs = {"eagle_aux_hidden_state_layer_ids": [1, 14, 26]}
    inputs = {"eagle_aux_hidden_state_layer_ids": [2, 15, 27]}
    assert ids(flat | {"eagle_config": outputs}) == ids(flat | {"eagle_config": inputs}) == (1, 14, 26)
    assert ids(CONFIG.to_json() | outputs) == (0, 13, 25)


def test_llama3s_rotation_is_transformers() -> None:
    theirs = LlamaConfig.from_dict(LLAMA3.to_json()["transformer_layer_config"] | {"head_dim": 64})
    frequencies, factor = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    angles = torch.arange(50.0)[:, None] * frequencies
    cosines, sines = rotation(torch.arange(50), 64, LLAMA3.rope_theta, torch.float32, LLAMA3.rope_scaling)
    assert factor == 1
    torch.testing.assert_close(cosines[:, 0, :32], angles.cos())
    torch.testing.assert_close(sines[:, 0, 32:], angles.sin())


def test_what_speculators_leaves_to_transformers_is_filled_in() -> None:
    layer = {"model_type": "qwen3", "num_hidden_layers": 1, "vocab_size": 64}
    config = config_of(CONFIG.to_json() | {"transformer_layer_config": layer}, layers=LAYERS)
    assert (config.hidden_size, config.num_attention_heads, config.head_dim) == (4096, 32, 128)


FLAT, OURS = safe_config(), CONFIG.to_json()
LAYER = OURS["transformer_layer_config"]
AUX = "eagle_aux_hidden_state_layer_ids"


def of_layer(**change: object) -> dict[str, Any]:
    return OURS | {"transformer_layer_config": LAYER | change}


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (OURS | {"speculators_model_type": "peagle"}, "drafter"),
        (FLAT | {"architectures": ["LlamaForCausalLMEagle"]}, "drafter"),
        (of_layer(num_hidden_layers=2), "transformer_layer_config.num_hidden_layers"),
        (of_layer(model_type="mllama"), "transformer_layer_config.model_type"),
        (of_layer(attention_bias=True), "transformer_layer_config.attention_bias"),
        (of_layer(hidden_size="wide"), "transformer_layer_config"),
        (FLAT | {"hidden_act": "gelu"}, "transformer_layer_config.hidden_act"),
        (FLAT | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "transformer_layer_config.rope_parameters"),
        (FLAT | {"target_hidden_size": 64}, "target_hidden_size"),
        (FLAT | {"eagle_config": {"use_aux_hidden_state": False}}, "eagle_config.use_aux_hidden_state"),
        (OURS | {"norm_before_fc": True, "fc_norm": True}, "fc_norm"),
        (OURS | {AUX: [2, 1, 3]}, "target_layer_ids"),
        (OURS | {AUX: [2, 3, 9]}, AUX),
        (FLAT | {"vocab_size": VOCAB + 1}, "drafter"),
        (FLAT | {"hidden_size": 2 * HIDDEN, "head_dim": 8}, "drafter"),
        (FLAT | {"draft_vocab_size": 23}, "d2t"),
        (FLAT | {"intermediate_size": 49}, "model.safetensors: layers.0.mlp.down_proj.weight"),
        (FLAT | {"norm_before_fc": True}, "model.safetensors"),
    ],
)
def test_what_is_not_served_or_does_not_fit_is_refused_by_name(
    tmp_path: Path, target: LocalModel, data: dict[str, Any], field: str
) -> None:
    write_config(tmp_path / "theirs", data)
    save_file(safe_tensors(small_eagle()), tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(InvalidRequest) as refused:
        exchange.imported(tmp_path / "theirs", target)
    assert refused.value.field == field


def test_maps_that_disagree_and_folders_without_weights_are_refused(tmp_path: Path, target: LocalModel) -> None:
    folder, tensors = tmp_path / "theirs", safe_tensors(small_eagle())
    write_config(folder, FLAT)
    with pytest.raises(InvalidRequest, match=r"drafter: expected .*pytorch_model"):
        exchange.imported(folder, target)
    save_file(tensors | {"t2d": ~tensors["t2d"]}, folder / "model.safetensors")
    with pytest.raises(InvalidRequest, match="d2t: expected the tokens that t2d marks"):
        exchange.imported(folder, target)


def test_deepspec_has_no_place_for_it(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="eagle3 drafters are exported as speculators"):
        exchange.export(small_eagle(WHOLE), tmp_path, form="deepspec", verifier="v", dtype=torch.float32)


def test_in_and_out_from_the_command_line(tmp_path: Path, target: LocalModel) -> None:
    drafter = small_eagle()
    write_config(tmp_path / "theirs", FLAT)
    torch.save(safe_tensors(drafter), tmp_path / "theirs" / "pytorch_model.bin")
    common = ["--model", str(target.folder), "--dtype", "float32"]
    assert main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours"), *common]) == 0
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "out"), *common]) == 0
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["paceline"]["target_fingerprint"]
    same_weights(brought_in(tmp_path / "out", target), drafter)
    other = LocalModel(write_target(tmp_path / "other", seed=9), "other")
    with pytest.raises(InvalidRequest, match="drafter: expected a drafter of other"):
        load(tmp_path / "ours", other)
