"""A drafter's folder: ``config.json`` and ``model.safetensors``, with the names of vLLM's ``speculators``.

The target's embedding and head are not in it: they are read from the target's own folder, whose fingerprint is checked.
Large matrices may be stored as int8 with one scale per row; they are loaded as what was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paceline.drafters.hidden.config import HiddenConfig
from paceline.drafters.hidden.eagle.config import EAGLE3, EagleConfig
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.drafters.hidden.target_weights import TargetWeights
from paceline.drafters.hidden.vocabulary import DraftVocabulary
from paceline.engine.models import LocalModel
from paceline.engine.numerics import fingerprint
from paceline.speculation.errors import InvalidRequest, Unsupported

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_SCALE = ".int8_scale"  # beside an int8 matrix [rows, columns]: float32 [rows]
_QUANTISED_ELEMENTS = 1 << 16  # smaller tensors are not worth it


def read_config(folder: Path) -> HiddenConfig | EagleConfig:
    """What a drafter's folder says it is. Raises InvalidRequest or Unsupported."""
    path = folder / CONFIG
    if not path.is_file():
        raise InvalidRequest("drafter", expected=f"a folder with {CONFIG} and {WEIGHTS}", got=str(folder))
    data = json.loads(path.read_text())
    eagle = data.get("speculators_model_type") == EAGLE3
    return EagleConfig.from_json(data) if eagle else HiddenConfig.from_json(data)


def load(folder: Path, target: LocalModel, *, dtype: torch.dtype = torch.bfloat16) -> HiddenDrafter:
    """The trained drafter of a folder. Raises what ``read_config``, ``read_tensors`` and ``build`` raise."""
    config = read_config(folder)
    if not isinstance(config, HiddenConfig):
        raise Unsupported("speculators_model_type", got=config.drafter, hint="only dspark and dflash drafters do here")
    return build(config, read_tensors(folder), target, dtype=dtype)


def build(
    config: HiddenConfig, tensors: dict[str, Tensor], target: LocalModel, *, dtype: torch.dtype = torch.bfloat16
) -> HiddenDrafter:
    """A trained drafter for this target, on the CPU, in eval mode.

    Raises InvalidRequest if it was trained for another target or its weights do not fit its config.
    """
    require_target(config, target)
    vocabulary = vocabulary_of(config, tensors)
    weights = TargetWeights(target.folder)
    drafter = HiddenDrafter(config, vocabulary, weights.embedding().to(dtype), weights.head().to(dtype)).to(dtype)
    fill(drafter, tensors)
    return drafter.eval().requires_grad_(False)


def require_target(config: HiddenConfig | EagleConfig, target: LocalModel) -> None:
    """Raises InvalidRequest if a drafter was trained for another target."""
    if not config.target_fingerprint:
        return
    found = fingerprint(target.folder, target.layers)
    if found != config.target_fingerprint:
        raise InvalidRequest(
            "drafter",
            expected=f"a drafter of {target.model_id} ({found[:12]})",
            got=f"one of {config.target_model or 'another target'} ({config.target_fingerprint[:12]})",
            hint="drafters read the hidden states of the very weights they were trained on",
        )


def vocabulary_of(config: HiddenConfig | EagleConfig, tensors: dict[str, Tensor]) -> DraftVocabulary:
    """The draft vocabulary of a checkpoint's tensors; all of the target's where it has no map."""
    if "d2t" in tensors:
        if tensors["d2t"].shape != (config.draft_vocab_size,):
            raise InvalidRequest("d2t", expected=str([config.draft_vocab_size]), got=list(tensors["d2t"].shape))
        return DraftVocabulary.from_offsets(tensors["d2t"], config.vocab_size)
    if config.draft_vocab_size != config.vocab_size:
        raise InvalidRequest("d2t", expected=f"a map of {config.draft_vocab_size} draft tokens", got=None)
    return DraftVocabulary.full(config.vocab_size)


def fill(drafter: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put a checkpoint's weights into a drafter. Raises InvalidRequest for one missing, left over or misshapen."""
    wanted = drafter.state_dict()
    given = {name: tensor for name, tensor in tensors.items() if name not in ("d2t", "t2d")}
    for name in sorted(wanted.keys() ^ given.keys()):
        raise InvalidRequest(WEIGHTS, expected="the tensors of config.json" if name in given else name, got=name)
    for name, tensor in given.items():
        if wanted[name].shape != tensor.shape:
            raise InvalidRequest(f"{WEIGHTS}: {name}", expected=str(list(wanted[name].shape)), got=list(tensor.shape))
    drafter.load_state_dict(given)


def read_tensors(folder: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a folder by name, int8 ones back in float32; of ``names``, those there are."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise InvalidRequest("drafter", expected=f"a folder with {CONFIG} and {WEIGHTS}", got=str(folder))
    with safe_open(path, framework="pt") as file:
        kept = [name for name in file.keys() if names is None or name.removesuffix(_SCALE) in names]  # noqa: SIM118
        return widened({name: file.get_tensor(name) for name in kept})


def widened(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, those that are stored as int8 back in float32."""
    scales = {name.removesuffix(_SCALE): tensor for name, tensor in stored.items() if name.endswith(_SCALE)}
    stored = {name: tensor for name, tensor in stored.items() if not name.endswith(_SCALE)}
    return {name: t.float() * scales[name][:, None] if name in scales else t for name, t in stored.items()}


def save(
    folder: Path, drafter: HiddenDrafter | EagleDrafter, *, dtype: torch.dtype = torch.bfloat16, int8: bool = False
) -> None:
    """Write a drafter's folder, each file whole or not at all.

    Args:
        dtype: of stored weights.
        int8: store large matrices as int8 with a scale per row (half the size of bfloat16).
    """
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in drafter.state_dict().items()}
    if int8:
        tensors = _quantised(drafter.state_dict(), tensors)
    config = drafter.config
    if config.draft_vocab_size != config.vocab_size:
        tensors["d2t"] = drafter.vocabulary.offsets()
        tensors["t2d"] = drafter.vocabulary.membership()
    write(folder, config.to_json(), tensors)


def write(folder: Path, config: dict[str, object], tensors: dict[str, Tensor]) -> None:
    """Write ``config.json`` and ``model.safetensors``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f".{WEIGHTS}.staged"
    save_file(tensors, staged, metadata={"format": "pt"})
    staged.replace(folder / WEIGHTS)
    staged = folder / f".{CONFIG}.staged"
    staged.write_text(json.dumps(config, indent=2) + "\n")
    staged.replace(folder / CONFIG)


def _quantised(state: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    out = dict(tensors)
    for name, tensor in state.items():
        if tensor.dim() != 2 or tensor.numel() < _QUANTISED_ELEMENTS:
            continue
        wide = tensor.detach().float()
        scale = wide.abs().amax(1).clamp_min(1e-12) / 127
        out[name] = (wide / scale[:, None]).round().to(torch.int8).contiguous()
        out[name + _SCALE] = scale
    return out
