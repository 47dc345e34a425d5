"""What a drafter's config.json may say, and the draft vocabulary."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from paceline.drafters.hidden.config import HiddenConfig, default_layer_ids
from paceline.drafters.hidden.vocabulary import DraftVocabulary
from paceline.speculation.errors import InvalidRequest, Unsupported

from tests.unit.hidden_kit import CONFIG, dflash


@pytest.mark.parametrize(
    "config", [CONFIG, dflash(), dataclasses.replace(CONFIG, target_fingerprint="ab", markov_rank=3)]
)
def test_config_survives_its_json(config: HiddenConfig) -> None:
    assert HiddenConfig.from_json(config.to_json()) == config


def test_layer_ids_are_counted_as_speculators_does() -> None:
    assert CONFIG.target_layer_ids == (-1, 1, 3)
    assert CONFIG.to_json()["aux_hidden_state_layer_ids"] == [0, 2, 4]


def test_a_block_whose_anchor_predicts_nothing_drafts_one_token_less() -> None:
    assert (CONFIG.draft_tokens, CONFIG.first_row) == (4, 0)
    assert (dflash().draft_tokens, dflash().first_row) == (3, 1)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"draft_vocab_size": 65}, "draft_vocab_size"),
        ({"num_key_value_heads": 3}, "num_attention_heads"),
        ({"target_layer_ids": (1, 1)}, "target_layer_ids"),
        ({"target_layer_ids": ()}, "target_layer_ids"),
        ({"mask_token_id": 64}, "mask_token_id"),
        ({"markov_rank": 0}, "confidence_head_with_markov"),
        ({"drafter": "eagle3"}, "speculators_model_type"),
        ({"block_size": 1, "sample_from_anchor": False}, "block_size"),
    ],
)
def test_impossible_shapes_are_refused_by_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        dataclasses.replace(CONFIG, **change)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"speculators_model_type": "eagle3"}, "speculators_model_type"),
        ({"markov_head_type": "rnn"}, "markov_head_type"),
        ({"target_hidden_size": 77}, "target_hidden_size"),
    ],
)
def test_what_is_not_served_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(Unsupported) as refused:
        HiddenConfig.from_json(CONFIG.to_json() | change)
    assert refused.value.field == field


def test_windows_and_scaled_rotary_embeddings_are_refused() -> None:
    data = CONFIG.to_json()
    layer = data["transformer_layer_config"]
    with pytest.raises(Unsupported, match="layer_types"):
        HiddenConfig.from_json(data | {"transformer_layer_config": layer | {"layer_types": ["sliding_attention"] * 2}})
    scaled = {"rope_type": "llama3", "rope_theta": 1e4}
    with pytest.raises(Unsupported, match="rope_parameters"):
        HiddenConfig.from_json(data | {"transformer_layer_config": layer | {"rope_parameters": scaled}})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidRequest, match="mask_token_id"):
        HiddenConfig.from_json(CONFIG.to_json() | {"mask_token_id": None})


def test_default_layers_are_deepspecs_for_its_target_and_always_increase() -> None:
    assert default_layer_ids(36) == (1, 9, 17, 25, 33)
    for layers in range(1, 40):
        spread = default_layer_ids(layers)
        assert list(spread) == sorted(set(spread))
        assert 0 <= spread[0] <= spread[-1] < layers


def test_vocabulary_maps_agree_and_survive_their_offsets() -> None:
    counts = torch.tensor([0, 9, 3, 9, 0, 1])
    vocabulary = DraftVocabulary.by_frequency(counts, 3)
    assert vocabulary.target_ids.tolist() == [1, 2, 3]
    assert vocabulary.draft_ids.tolist() == [-1, 0, 1, 2, -1, -1]
    assert vocabulary.membership().tolist() == [False, True, True, True, False, False]
    again = DraftVocabulary.from_offsets(vocabulary.offsets(), 6)
    assert again.target_ids.tolist() == vocabulary.target_ids.tolist()
    with pytest.raises(InvalidRequest, match="d2t"):
        DraftVocabulary(torch.tensor([3, 3]), 6)
