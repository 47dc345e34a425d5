"""A drafter to begin with: its shape from the target's, its layers copies of some of the target's own.

The layers' inputs differ from what they were in the target (context through one projection, masks for tokens), and
query and key heads are normalised, which Llama's are not; but what a layer does to a residual stream on its way to the
head carries over, and a drafter started so is ahead of one started at random for as long as we trained either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paceline.drafters.hidden.config import DSPARK, HiddenConfig, rope_theta
from paceline.drafters.hidden.layers import RMSNorm
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.drafters.hidden.target_weights import TargetWeights
from paceline.drafters.hidden.vocabulary import DraftVocabulary
from paceline.engine.models import LocalModel
from paceline.engine.numerics import fingerprint
from paceline.speculation.errors import InvalidRequest, Unsupported

_MARKOV_STD = 0.1
_COPIED = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Shape:
    """What is free to choose about a drafter."""

    drafter: str = DSPARK
    block_size: int = 5
    layers: int = 2
    draft_vocab: int = 12288
    markov_rank: int = 64


def config_for(target: LocalModel, shape: Shape, layer_ids: Sequence[int], mask_token_id: int) -> HiddenConfig:
    """The config of a drafter of this shape. Raises Unsupported for a target it cannot follow."""
    weights = TargetWeights(target.folder)
    of_target: dict[str, Any] = weights.config()
    heads = int(of_target["num_attention_heads"])
    dspark = shape.drafter == DSPARK
    if of_target.get("hidden_act", "silu") != "silu":
        raise Unsupported("target.hidden_act", got=of_target["hidden_act"], hint="take a target with SiLU layers")
    return HiddenConfig(
        drafter=shape.drafter,
        hidden_size=int(of_target["hidden_size"]),
        intermediate_size=int(of_target["intermediate_size"]),
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=int(of_target.get("num_key_value_heads") or heads),
        head_dim=int(of_target.get("head_dim") or of_target["hidden_size"] // heads),
        rms_norm_eps=float(of_target.get("rms_norm_eps", 1e-6)),
        rope_theta=rope_theta(of_target),
        vocab_size=int(of_target["vocab_size"]),
        draft_vocab_size=min(shape.draft_vocab, int(of_target["vocab_size"])),
        block_size=shape.block_size,
        target_layer_ids=tuple(layer_ids),
        mask_token_id=mask_token_id,
        markov_rank=shape.markov_rank if dspark else 0,
        enable_confidence_head=dspark,
        confidence_head_with_markov=dspark,
        sample_from_anchor=dspark,
        max_position_embeddings=int(of_target.get("max_position_embeddings", 8192)),
        target_model=target.model_id,
        target_architecture=str(next(iter(of_target.get("architectures") or []), "")),
        target_fingerprint=fingerprint(target.folder, target.layers),
    )


def fresh(
    config: HiddenConfig, vocabulary: DraftVocabulary, target: LocalModel, *, copied: Sequence[int] | None, seed: int
) -> HiddenDrafter:
    """A drafter in float32, to be trained.

    Args:
        copied: the target's layers the drafter's begin as, one each; None begins at random.

    Raises InvalidRequest for layers the target doesn't have.
    """
    weights = TargetWeights(target.folder)
    torch.manual_seed(seed)
    head = weights.head().to(torch.bfloat16)
    drafter = HiddenDrafter(config, vocabulary, weights.embedding().to(torch.bfloat16), head)
    with torch.no_grad():
        _at_random(drafter)
        if copied is not None:
            _as_target(drafter, weights, copied)
    return drafter


def _at_random(drafter: HiddenDrafter) -> None:
    for name, module in drafter.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if name == "markov_head.markov_w2" and isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)  # begins without a say


def _as_target(drafter: HiddenDrafter, weights: TargetWeights, copied: Sequence[int]) -> None:
    if len(copied) != len(drafter.layers):
        raise InvalidRequest("init_layers", expected=f"{len(drafter.layers)} layers of the target", got=list(copied))
    for layer, number in zip(drafter.layers, copied, strict=True):
        for name in (*(f"self_attn.{part}" for part in _COPIED), *(f"mlp.{part}" for part in _MLP)):
            _copy(layer.get_submodule(name), weights, f"layers.{number}.{name}.weight")
        for name in ("input_layernorm", "post_attention_layernorm"):
            _copy(layer.get_submodule(name), weights, f"layers.{number}.{name}.weight")
    if drafter.markov_head is not None:  # tokens that are alike begin alike
        drafter.markov_head.markov_w1.weight.copy_(_principal(drafter.embed_tokens, drafter.config.markov_rank))
    _copy(drafter.norm, weights, "model.norm.weight")
    _copy(drafter.hidden_norm, weights, f"layers.{copied[0]}.input_layernorm.weight")
    width, taps = drafter.config.hidden_size, len(drafter.config.target_layer_ids)
    for tap in range(taps):  # features begin as the mean of the tapped layers
        drafter.fc.weight[:, tap * width : (tap + 1) * width].add_(torch.eye(width) / taps)


def _copy(module: nn.Module, weights: TargetWeights, name: str) -> None:
    found = weights.named(name)
    assert isinstance(module, nn.Linear | RMSNorm), module
    if found is None or found.shape != module.weight.shape:
        got = None if found is None else list(found.shape)
        raise InvalidRequest("init_layers", expected=f"{name} {list(module.weight.shape)} in the target", got=got)
    module.weight.copy_(found.to(module.weight.dtype))


def _principal(embedding: Tensor, rank: int) -> Tensor:
    """An embedding along its ``rank`` widest directions (repeated if it has fewer), small; [V, H] -> [V, rank]."""
    wide = embedding.float()
    centred = wide - wide.mean(0)
    _, directions = torch.linalg.eigh(centred.t() @ centred)  # ascending
    columns = torch.arange(rank) % wide.shape[1]
    along = centred @ directions.flip(1)[:, columns]
    out: Tensor = along * (_MARKOV_STD / along.std())
    return out
