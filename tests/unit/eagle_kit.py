"""Tiny EAGLE-3 drafters, and their folders as others write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from paceline.drafters.hidden.eagle.config import EagleConfig
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.vocabulary import DraftVocabulary
from torch import Tensor

from tests.unit.hidden_kit import HIDDEN, VOCAB

CONFIG = EagleConfig(
    hidden_size=HIDDEN,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    vocab_size=VOCAB,
    draft_vocab_size=24,
    target_layer_ids=(-1, 1, 3),
    draft_tokens=5,
)
SAFE_LAYERS = [0, 2, 4]  # the same, as ``eagle_config`` says it by layers' inputs


def small_eagle(config: EagleConfig = CONFIG, *, seed: int = 1, embedding: Tensor | None = None) -> EagleDrafter:
    """A drafter with random weights, in float32; ``embedding`` is the target's."""
    torch.manual_seed(seed)
    own = torch.randn(VOCAB, HIDDEN) * HIDDEN**-0.5
    vocabulary = DraftVocabulary.by_frequency(torch.arange(VOCAB) % 7, config.draft_vocab_size)
    drafter = EagleDrafter(config, vocabulary, own if embedding is None else embedding)
    with torch.no_grad():
        for name, tensor in drafter.named_parameters():
            if "norm" in name:  # ones would hide a norm left out
                tensor.add_(torch.randn_like(tensor) * 0.2)
        drafter.lm_head.weight.mul_(4)  # drafts that are not all alike
    return drafter.eval().requires_grad_(False)


def safe_tensors(drafter: EagleDrafter) -> dict[str, Tensor]:
    """Its tensors by the names of SafeAILab's code."""
    named = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in drafter.state_dict().items()}
    return named | {"d2t": drafter.vocabulary.offsets(), "t2d": drafter.vocabulary.membership()}


def safe_config(config: EagleConfig = CONFIG) -> dict[str, Any]:
    """Its config as SafeAILab, SGLang and SpecForge write it: flat, and without what is a default."""
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "num_hidden_layers": 1,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": 2048,
        "torch_dtype": "float16",
        "vocab_size": config.vocab_size,
        "draft_vocab_size": config.draft_vocab_size,
        "eagle_config": {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": SAFE_LAYERS},
    }


def write_config(folder: Path, data: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(data))
