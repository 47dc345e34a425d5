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
from paceline.drafters.hidden.backend import Backend
from paceline.drafters.hidden.config import HiddenConfig
from paceline.drafters.hidden.drafter import ContextDrafter, Served
from paceline.drafters.hidden.eagle.backend import EagleBackend
from paceline.drafters.hidden.eagle.checkpoint import build as build_eagle
from paceline.drafters.hidden.eagle.config import EagleConfig
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.eagle.products import put_on_kernels
from paceline.drafters.hidden.native_backend import NativeBackend, kernels_for
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.drafters.hidden.torch_backend import TorchBackend
from paceline.drafters.shaping import DraftShaping
from paceline.engine.grammar import grammars_of
from paceline.engine.models import LocalModel
from paceline.engine.native import Kernels
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
    return _projector(config, checkpoint.read_tensors(folder, _names(config)), folder)


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
    network, backend, kernels = _network(config, tensors, target, tokens, dtype)
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


def _network(
    config: HiddenConfig | EagleConfig, tensors: dict[str, Tensor], target: LocalModel, tokens: int, dtype: torch.dtype
) -> tuple[HiddenDrafter | EagleDrafter, Backend, Kernels | None]:
    if isinstance(config, EagleConfig):
        eagle = build_eagle(config, tensors, target, dtype=dtype)
        products = put_on_kernels(eagle)
        return eagle, EagleBackend(eagle, tokens), products
    network = checkpoint.build(config, tensors, target, dtype=dtype)
    kernels = kernels_for(network)
    if kernels is None:
        return network, TorchBackend(network, tokens), None
    return network, NativeBackend(network, kernels, tokens), kernels


def _names(config: HiddenConfig | EagleConfig) -> list[str]:
    """Of a projector's tensors: its matrix, then its norms."""
    if not isinstance(config, EagleConfig):
        return [_MATRIX, _NORM]
    if config.norm_before_fc:
        return [_MATRIX, "input_norm.weight"]
    count = len(config.target_layer_ids) if config.fc_norm else 0
    return [_MATRIX, *(f"fc_norm.{place}.weight" for place in range(count))]


def _projector(config: HiddenConfig | EagleConfig, tensors: Mapping[str, Tensor], folder: Path) -> Projector:
    names = _names(config)
    for name in names:
        if name not in tensors:
            raise InvalidRequest(checkpoint.WEIGHTS, expected=f"a tensor named {name}", got=str(folder))
    matrix, *norms = [tensors[name].float() for name in names]
    before = isinstance(config, EagleConfig)
    return Projector(
        fingerprint=_fingerprint(config, matrix, *norms),
        layers=config.target_layer_ids,
        weight=matrix,
        norm=None if before else norms[0],
        eps=config.rms_norm_eps,
        target=config.target_fingerprint,
        input_norms=tuple(norms) if before else (),
    )


def _fingerprint(config: HiddenConfig | EagleConfig, *tensors: Tensor) -> str:
    """Of all that features depend on beside the target's own states: equal ones may be mixed."""
    what: tuple[object, ...] = (config.target_layer_ids, config.rms_norm_eps, config.target_fingerprint)
    if isinstance(config, EagleConfig):
        what += (config.norm_before_fc, config.fc_norm)
    digest = hashlib.sha256(repr(what).encode())
    for tensor in tensors:
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
