"""A tiny target's folder and tiny drafters for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from paceline.drafters.hidden.config import HiddenConfig
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.drafters.hidden.vocabulary import DraftVocabulary
from safetensors.torch import save_file

HIDDEN, VOCAB, LAYERS = 32, 64, 4


def write_target(folder: Path, *, seed: int = 0) -> Path:
    """A Llama of 4 layers with random weights and tied embeddings."""
    draw = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        values: torch.Tensor = torch.randn(*shape, generator=draw) * shape[-1] ** -0.5
        return values.to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": weight(VOCAB, HIDDEN), "model.norm.weight": weight(HIDDEN) + 1}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        tensors |= {
            name + "self_attn.q_proj.weight": weight(HIDDEN, HIDDEN),
            name + "self_attn.k_proj.weight": weight(HIDDEN // 2, HIDDEN),
            name + "self_attn.v_proj.weight": weight(HIDDEN // 2, HIDDEN),
            name + "self_attn.o_proj.weight": weight(HIDDEN, HIDDEN),
            name + "mlp.gate_proj.weight": weight(48, HIDDEN),
            name + "mlp.up_proj.weight": weight(48, HIDDEN),
            name + "mlp.down_proj.weight": weight(HIDDEN, 48),
            name + "input_layernorm.weight": weight(HIDDEN) + 1,
            name + "post_attention_layernorm.weight": weight(HIDDEN) + 1,
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "vocab_size": VOCAB,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


CONFIG = HiddenConfig(
    drafter="dspark",
    hidden_size=HIDDEN,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    vocab_size=VOCAB,
    draft_vocab_size=24,
    block_size=4,
    target_layer_ids=(-1, 1, 3),
    mask_token_id=5,
    markov_rank=8,
    enable_confidence_head=True,
    confidence_head_with_markov=True,
)


def dflash(config: HiddenConfig = CONFIG, *, sample_from_anchor: bool = False) -> HiddenConfig:
    """The same without heads."""
    return dataclasses.replace(
        config,
        drafter="dflash",
        markov_rank=0,
        enable_confidence_head=False,
        confidence_head_with_markov=False,
        sample_from_anchor=sample_from_anchor,
    )


def small_drafter(config: HiddenConfig = CONFIG, *, seed: int = 1) -> HiddenDrafter:
    """A drafter with random weights, in float32."""
    torch.manual_seed(seed)
    embedding = torch.randn(VOCAB, HIDDEN) * HIDDEN**-0.5
    counts = torch.arange(VOCAB) % 7
    vocabulary = DraftVocabulary.by_frequency(counts, config.draft_vocab_size)
    drafter = HiddenDrafter(config, vocabulary, embedding, embedding)
    with torch.no_grad():
        for name, tensor in drafter.named_parameters():
            if "norm" in name:  # ones would hide a norm left out
                tensor.add_(torch.randn_like(tensor) * 0.2)
            if "markov_w1" in name:
                tensor.mul_(50)
    return drafter.eval()
