"""From a drafter's folder to what its two halves need: the target its projector, the draft worker its network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paceline.drafters.hidden import checkpoint
from paceline.drafters.hidden.config import HiddenConfig
from paceline.drafters.hidden.drafter import ContextDrafter, Served
from paceline.drafters.hidden.native_backend import NativeBackend, kernels_for
from paceline.drafters.hidden.torch_backend import TorchBackend
from paceline.drafters.shaping import DraftShaping
from paceline.engine.grammar import grammars_of
from paceline.engine.models import LocalModel
from paceline.engine.native_draw import NativeDraw
from paceline.engine.projection import Projector
from paceline.engine.tokenizer_files import GENERATION, tokenizer_files
from paceline.speculation.errors import InvalidRequest

_MATRIX, _NORM = "fc.weight", "hidden_norm.weight"


@dataclass(frozen=True, slots=True)
class LoadedDrafter:
    """A drafter that is warm, and what fits it."""

    drafter: ContextDrafter
    tokenizer_files: dict[str, bytes]  # of the target
    kernels: str  # it runs on: native or torch


def read_projector(folder: Path) -> Projector:
    """The projector of a drafter's folder: all the target needs of it. Raises InvalidRequest or Unsupported."""
    config = checkpoint.read_config(folder)
    return _projector(config, checkpoint.read_tensors(folder, (_MATRIX, _NORM)), folder)


def load_drafter(
    folder: Path, target: LocalModel, *, tokens: int, dtype: torch.dtype = torch.bfloat16
) -> LoadedDrafter:
    """A drafter for a target, on the best kernels there are.

    Args:
        tokens: context positions held for all sessions together.

    Raises InvalidRequest if it was trained for another target or its folder is broken, Unsupported for a variant that
    is not served, Unavailable if the target's tokenizer cannot be read.
    """
    config, tensors = checkpoint.read_config(folder), checkpoint.read_tensors(folder)
    network = checkpoint.build(config, tensors, target, dtype=dtype)
    kernels = kernels_for(network)
    backend = TorchBackend(network, tokens) if kernels is None else NativeBackend(network, kernels, tokens)
    files = tokenizer_files(target.folder)
    eos = json.loads(files.get(GENERATION, b"{}")).get("eos_token_id", [])
    vocab_size = config.vocab_size
    grammars = grammars_of(files, eos=eos, vocab_size=vocab_size)
    served = Served(
        network,
        backend,
        projector=_projector(config, tensors, folder).fingerprint,
        model_id=folder.resolve().name,
        fast=None if kernels is None else NativeDraw(kernels),
    )
    shaping = DraftShaping(vocab_size=vocab_size, eos=eos, grammars=grammars)
    return LoadedDrafter(ContextDrafter(served, shaping), files, "torch" if kernels is None else "native")


def _projector(config: HiddenConfig, tensors: Mapping[str, Tensor], folder: Path) -> Projector:
    for name in (_MATRIX, _NORM):
        if name not in tensors:
            raise InvalidRequest(checkpoint.WEIGHTS, expected=f"a tensor named {name}", got=str(folder))
    matrix, norm = tensors[_MATRIX].float(), tensors[_NORM].float()
    return Projector(
        fingerprint=_fingerprint(config, matrix, norm),
        layers=config.target_layer_ids,
        weight=matrix,
        norm=norm,
        eps=config.rms_norm_eps,
        target=config.target_fingerprint,
    )


def _fingerprint(config: HiddenConfig, matrix: Tensor, norm: Tensor) -> str:
    """Of all that features depend on beside the target's own states: equal ones may be mixed."""
    digest = hashlib.sha256(repr((config.target_layer_ids, config.rms_norm_eps, config.target_fingerprint)).encode())
    for tensor in (matrix, norm):
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
