"""EAGLE-3 checkpoints of others: vLLM's ``speculators``, and the layout of SafeAILab's code, SGLang and SpecForge.

The latter is a flat Llama config (architectures ``LlamaForCausalLMEagle3``) over tensors of other names, in
``pytorch_model.bin`` as often as in safetensors. Both leave what is transformers' default to transformers, and most
leave the target's layers to a convention.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from paceline.drafters.hidden import checkpoint
from paceline.drafters.hidden.config import speculators_block
from paceline.drafters.hidden.eagle.checkpoint import EMBEDDING, filled, require_shape
from paceline.drafters.hidden.eagle.config import DEFAULT_DRAFT_TOKENS, EAGLE3, LLAMA, QWEN3, EagleConfig
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.target_weights import TargetWeights
from paceline.engine.models import LocalModel
from paceline.engine.numerics import fingerprint
from paceline.speculation.errors import InvalidRequest, Unsupported

PICKLED = "pytorch_model.bin"
_FAMILY = "eagle"
_HEAD = "lm_head.weight"
_LAYER, _MIDLAYER = "layers.0.", "midlayer."
_UNUSED = ("verifier_", "layers.0.self_attn.rotary_emb.")  # of the target, and computed anew
_LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
_OPTIONS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "target_hidden_size")


def recognised(data: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is an EAGLE-3 drafter's. Raises Unsupported for another drafter of that family."""
    kinds = [str(data.get("speculators_model_type", "")), *(str(each) for each in data.get("architectures") or [])]
    named = [kind for kind in kinds if _FAMILY in kind.lower()]
    if not named:
        return False
    if kinds[0] not in ("", EAGLE3) or not any(EAGLE3 in kind.lower() for kind in named):
        raise Unsupported("drafter", got=named[0], hint="of the EAGLE drafters only EAGLE-3 is served")
    return True


def imported(folder: Path, data: Mapping[str, Any], target: LocalModel) -> EagleDrafter:
    """A drafter out of another's folder, for this target, in float32.

    Args:
        data: the folder's ``config.json``.

    Raises InvalidRequest for a folder that is broken or does not fit the target, Unsupported for what is not served.
    """
    tensors = _tensors(folder)
    weights = TargetWeights(target.folder)
    config = config_of(data, layers=_layers(weights, target))
    embedding = weights.embedding().float()
    config = dataclasses.replace(
        config, target_model=target.model_id, target_fingerprint=fingerprint(target.folder, target.layers)
    )
    require_shape(config, embedding)
    _check_map(tensors, config)
    if _HEAD not in tensors:  # as speculators fills it in
        rows = tensors["t2d"].bool() if "t2d" in tensors else slice(None)
        tensors[_HEAD] = weights.head()[rows]
    if EMBEDDING in tensors and _alike(tensors[EMBEDDING], embedding):
        del tensors[EMBEDDING]
    return filled(config, tensors, embedding, dtype=torch.float32).eval()


def config_of(data: Mapping[str, Any], *, layers: int) -> EagleConfig:
    """What the ``config.json`` of an EAGLE-3 drafter says, in either layout.

    Args:
        layers: of the target.

    Raises InvalidRequest or Unsupported, naming the field.
    """
    if "speculators_model_type" in data:
        ids = data.get(_LAYER_IDS) or _usual(layers)
        whole = dict(data)
    else:
        ids = _captured(data.get("eagle_config") or {}, layers)
        options = {name: data[name] for name in _OPTIONS if name in data}
        block = speculators_block(EAGLE3, DEFAULT_DRAFT_TOKENS, "", "")
        draft_vocab_size = data.get("draft_vocab_size") or data.get("vocab_size")
        layer = {"model_type": LLAMA, "num_hidden_layers": 1, **data}  # which is what ``midlayer`` says
        whole = {
            "speculators_config": block, "transformer_layer_config": layer, "draft_vocab_size": draft_vocab_size,
            **options,
        }  # fmt: skip
    if max(ids) > layers:
        raise InvalidRequest(_LAYER_IDS, expected=f"hidden states of a target of {layers} layers", got=ids)
    layer = _completed(whole.get("transformer_layer_config") or {})
    return EagleConfig.from_json({**whole, "transformer_layer_config": layer, _LAYER_IDS: ids})


def _usual(layers: int) -> list[int]:
    """The hidden states that are read where a checkpoint doesn't say: 0 is the embedding's, i + 1 that of layer i."""
    return [2, layers // 2, layers - 3]


def _captured(block: Mapping[str, Any], layers: int) -> list[int]:
    """The hidden states that an ``eagle_config`` names, counted as in ``_usual``.

    Some count layers' outputs and some their inputs. Nobody reads the embedding, so ids that begin with 1 are outputs
    and others inputs; that is how SGLang tells them apart.
    """
    if not block.get("use_aux_hidden_state", True):
        raise Unsupported("eagle_config.use_aux_hidden_state", got=False, hint="EAGLE-3 reads three hidden states")
    ids = [int(each) for each in block.get(_LAYER_IDS) or ()]
    if not ids:
        return _usual(layers)
    return [each + 1 for each in ids] if ids[0] == 1 else ids


def _completed(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's config with transformers' defaults, which ``speculators`` leaves out."""
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415  # these take a while,
    from transformers import LlamaConfig, Qwen3Config  # noqa: PLC0415  # and few import drafters

    kinds: dict[str, Any] = {LLAMA: LlamaConfig, QWEN3: Qwen3Config}
    kind = layer.get("model_type", QWEN3)
    if kind not in kinds:
        hint = f"only {' and '.join(kinds)} are served"
        raise Unsupported("transformer_layer_config.model_type", got=kind, hint=hint)
    given = {name: value for name, value in layer.items() if value is not None}
    try:
        out: dict[str, Any] = kinds[kind].from_dict(given).to_dict()
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        expected = f"the config of a {kind} layer"
        raise InvalidRequest("transformer_layer_config", expected=expected, got=given, hint=str(error)) from error
    return out


def _layers(weights: TargetWeights, target: LocalModel) -> int:
    layers = target.layers or weights.config().get("num_hidden_layers")
    if not isinstance(layers, int):
        raise InvalidRequest("target", expected="a config.json with num_hidden_layers", got=str(weights.folder))
    return layers


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder by the names of ``speculators``, float ones in float32."""
    found: dict[str, Tensor] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files and (folder / PICKLED).is_file():
        found = _unpickled(folder / PICKLED)
    elif not files:
        raise InvalidRequest("drafter", expected=f"*.safetensors or {PICKLED}", got=str(folder))
    for path in files:
        found |= load_file(path)
    out = {}
    for name, tensor in checkpoint.widened(found).items():
        own = name.removeprefix("model.")
        own = _LAYER + own.removeprefix(_MIDLAYER) if own.startswith(_MIDLAYER) else own
        if not own.startswith(_UNUSED):
            out[own] = tensor.float() if tensor.is_floating_point() else tensor
    return out


def _unpickled(path: Path) -> dict[str, Tensor]:
    """A pickled state dict, of which nothing is run. Raises InvalidRequest if it holds anything but tensors."""
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        hint = "convert it to safetensors where it comes from"
        raise InvalidRequest(PICKLED, expected="a pickle of tensors alone", got=str(path), hint=hint) from error
    if not isinstance(data, dict) or not all(isinstance(each, Tensor) for each in data.values()):
        raise InvalidRequest(PICKLED, expected="tensors by name", got=type(data).__name__)
    return data


def _check_map(tensors: Mapping[str, Tensor], config: EagleConfig) -> None:
    """Raises InvalidRequest if ``t2d`` says otherwise than ``d2t``."""
    if "t2d" not in tensors:
        return
    if tensors["t2d"].shape != (config.vocab_size,):
        raise InvalidRequest("t2d", expected=str([config.vocab_size]), got=list(tensors["t2d"].shape))
    if "d2t" not in tensors:
        return
    ids = tensors["d2t"].long() + torch.arange(len(tensors["d2t"]))
    if not torch.equal(ids, tensors["t2d"].bool().nonzero().flatten()):
        raise InvalidRequest("d2t", expected="the tokens that t2d marks, ascending", got=ids[:8].tolist())


def _alike(given: Tensor, own: Tensor) -> bool:
    """Whether an embedding is the target's own, up to rounding."""
    return given.shape == own.shape and float((given - own).abs().max()) <= 2**-7 * float(own.abs().max())
