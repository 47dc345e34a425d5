"""An EAGLE-3 drafter's folder: as other drafters', with its own head, and its own embedding if it has one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from paceline.drafters.hidden import checkpoint
from paceline.drafters.hidden.eagle.config import EagleConfig
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.target_weights import TargetWeights
from paceline.engine.models import LocalModel
from paceline.speculation.errors import InvalidRequest

EMBEDDING = "embed_tokens.weight"


def load(folder: Path, target: LocalModel, *, dtype: torch.dtype = torch.bfloat16) -> EagleDrafter:
    """The trained drafter of a folder. Raises InvalidRequest if it is none, and what ``build`` raises."""
    config = checkpoint.read_config(folder)
    if not isinstance(config, EagleConfig):
        raise InvalidRequest("drafter", expected="an eagle3 drafter", got=f"{config.drafter} in {folder}")
    return build(config, checkpoint.read_tensors(folder), target, dtype=dtype)


def build(
    config: EagleConfig, tensors: dict[str, Tensor], target: LocalModel, *, dtype: torch.dtype = torch.bfloat16
) -> EagleDrafter:
    """A trained drafter for this target, on the CPU, in eval mode.

    Raises InvalidRequest if it was trained for another target or its weights do not fit its config.
    """
    checkpoint.require_target(config, target)
    drafter = filled(config, tensors, TargetWeights(target.folder).embedding(), dtype=dtype)
    return drafter.eval().requires_grad_(False)


def filled(config: EagleConfig, tensors: dict[str, Tensor], embedding: Tensor, *, dtype: torch.dtype) -> EagleDrafter:
    """A drafter of a checkpoint's tensors. Raises InvalidRequest for one missing, left over or misshapen.

    Args:
        tensors: by the names of ``speculators``; with an embedding only if it is the drafter's own.
        embedding: the target's, [V, H].
    """
    require_shape(config, embedding)
    own = EMBEDDING in tensors
    if own:
        embedding = torch.empty_like(embedding)  # filled with the others
    drafter = EagleDrafter(
        config, checkpoint.vocabulary_of(config, tensors), embedding.to(dtype), own_embedding=own
    ).to(dtype)
    checkpoint.fill(drafter, tensors)
    return drafter


def require_shape(config: EagleConfig, embedding: Tensor) -> None:
    """Raises InvalidRequest unless a drafter has the vocabulary and the width of its target."""
    if embedding.shape != (config.vocab_size, config.hidden_size):
        raise InvalidRequest(
            "drafter", expected=f"one for [vocabulary, width] {list(embedding.shape)}, as its target has",
            got=[config.vocab_size, config.hidden_size],
        )  # fmt: skip
