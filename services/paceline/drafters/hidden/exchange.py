"""Drafters to and from the folders of others: vLLM's ``speculators``, and DeepSpec's.

Ours has the names of ``speculators`` but leaves out what is the target's; there the head's rows of a reduced
vocabulary are part of the checkpoint. DeepSpec's is a flat Qwen3 config over the same tensor names; it has the whole
vocabulary, embedding and head included. EAGLE-3's are read by ``eagle.foreign``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paceline.drafters.hidden import checkpoint
from paceline.drafters.hidden.config import DFLASH, DSPARK, HiddenConfig, rope_theta
from paceline.drafters.hidden.eagle import foreign
from paceline.drafters.hidden.eagle.checkpoint import EMBEDDING
from paceline.drafters.hidden.eagle.checkpoint import load as load_eagle
from paceline.drafters.hidden.eagle.config import EagleConfig
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.drafters.hidden.target_weights import TargetWeights
from paceline.engine.models import LocalModel
from paceline.engine.numerics import fingerprint
from paceline.speculation.errors import InvalidRequest, Unsupported

SPECULATORS = "speculators"
DEEPSPEC = "deepspec"
FORMATS = (SPECULATORS, DEEPSPEC)

_DEEPSPEC = "Qwen3DSparkModel"  # DFlash as well: without its heads
_OF_TARGET = ("embed_tokens.weight", "lm_head.weight", "verifier_lm_head.weight", "verifier_norm.weight")


def export(
    drafter: HiddenDrafter | EagleDrafter, folder: Path, *, form: str, verifier: str, dtype: torch.dtype
) -> None:
    """Write a drafter as others read it.

    Args:
        form: speculators or deepspec.
        verifier: what the reader shall call the target: a Hugging Face id, or a folder it can see.

    Raises InvalidRequest for a form there is not, Unsupported for what DeepSpec's cannot hold.
    """
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in drafter.state_dict().items()}
    config = dataclasses.replace(drafter.config, target_model=verifier)
    if form == SPECULATORS:
        if isinstance(drafter, EagleDrafter):  # where speculators takes an embedding for the drafter's own
            tensors[EMBEDDING] = drafter.embed_tokens.weight.to(dtype).contiguous()
        if config.draft_vocab_size != config.vocab_size:
            tensors["d2t"] = drafter.vocabulary.offsets()
            tensors["t2d"] = drafter.vocabulary.membership()
            if isinstance(drafter, HiddenDrafter):  # whose head is the target's
                tensors["lm_head.weight"] = drafter.lm_head.to(dtype).contiguous()
        checkpoint.write(folder, config.to_json(), tensors)
    elif form == DEEPSPEC:
        if not isinstance(drafter, HiddenDrafter) or not isinstance(config, HiddenConfig):
            raise Unsupported("format", got=form, hint=f"{config.drafter} drafters are exported as {SPECULATORS}")
        if config.draft_vocab_size != config.vocab_size:
            hint = f"DeepSpec's folders have the whole vocabulary: train with --draft-vocab {config.vocab_size}"
            raise Unsupported("draft_vocab_size", got=config.draft_vocab_size, hint=hint)
        if not config.sample_from_anchor:
            raise Unsupported("sample_from_anchor", got=False, hint="DeepSpec's anchors predict: train dspark")
        tensors["embed_tokens.weight"] = drafter.embed_tokens.to(dtype).contiguous()
        tensors["lm_head.weight"] = drafter.lm_head.to(dtype).contiguous()
        checkpoint.write(folder, _deepspec_json(config, str(dtype).removeprefix("torch.")), tensors)
    else:
        raise InvalidRequest("format", expected=" or ".join(FORMATS), got=form)


def loaded(folder: Path, target: LocalModel) -> HiddenDrafter | EagleDrafter:
    """A drafter out of a folder of ours, in float32. Raises InvalidRequest as ``checkpoint.load`` does."""
    if isinstance(checkpoint.read_config(folder), EagleConfig):
        return load_eagle(folder, target, dtype=torch.float32)
    return checkpoint.load(folder, target, dtype=torch.float32)


def imported(folder: Path, target: LocalModel) -> HiddenDrafter | EagleDrafter:
    """A drafter out of another's folder, for this target, in float32.

    Raises InvalidRequest for a folder that is no drafter or does not fit the target, Unsupported for one that cannot be
    served.
    """
    path = folder / checkpoint.CONFIG
    if not path.is_file():
        raise InvalidRequest("drafter", expected=f"a folder with {checkpoint.CONFIG}", got=str(folder))
    data = json.loads(path.read_text())
    if foreign.recognised(data):
        return foreign.imported(folder, data, target)
    config = config_of(data)
    weights = TargetWeights(target.folder)
    embedding, head = weights.embedding(), weights.head()
    if embedding.shape != (config.vocab_size, config.hidden_size):
        raise InvalidRequest(
            "drafter", expected=f"one for [vocabulary, width] {list(embedding.shape)}, as {target.model_id} has",
            got=[config.vocab_size, config.hidden_size],
        )  # fmt: skip
    tensors = checkpoint.read_tensors(folder)
    given = {name: tensor.float() for name, tensor in tensors.items() if name not in (*_OF_TARGET, "d2t", "t2d")}
    config = dataclasses.replace(
        config, target_model=target.model_id, target_fingerprint=fingerprint(target.folder, target.layers)
    )
    vocabulary = checkpoint.vocabulary_of(config, tensors)
    _check_head(tensors.get("lm_head.weight"), head[vocabulary.target_ids])
    drafter = HiddenDrafter(config, vocabulary, embedding.float(), head.float())
    checkpoint.fill(drafter, given)
    return drafter.eval()


def config_of(data: Mapping[str, Any]) -> HiddenConfig:
    """What a ``config.json`` of ours, of ``speculators`` or of DeepSpec says of a dspark or dflash drafter.

    Raises Unsupported for another architecture.
    """
    if "speculators_model_type" in data:
        return HiddenConfig.from_json(data)
    if _DEEPSPEC not in (data.get("architectures") or ()):
        raise Unsupported("architectures", got=data.get("architectures"), hint=f"only {_DEEPSPEC} is served")
    return _from_deepspec(data)


def _from_deepspec(data: Mapping[str, Any]) -> HiddenConfig:
    rank = int(data.get("markov_rank", 0))
    confidence = bool(data.get("enable_confidence_head", False))
    if rank and data.get("markov_head_type", "vanilla") != "vanilla":
        raise Unsupported("markov_head_type", got=data["markov_head_type"], hint="only 'vanilla' is served")
    if any(kind != "full_attention" for kind in data.get("layer_types") or ()):
        raise Unsupported("layer_types", got=data["layer_types"], hint="use full attention")
    try:
        return HiddenConfig(
            drafter=DSPARK if rank or confidence else DFLASH,
            hidden_size=int(data["hidden_size"]),
            intermediate_size=int(data["intermediate_size"]),
            num_hidden_layers=int(data["num_hidden_layers"]),
            num_attention_heads=int(data["num_attention_heads"]),
            num_key_value_heads=int(data["num_key_value_heads"]),
            head_dim=int(data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"]),
            rms_norm_eps=float(data["rms_norm_eps"]),
            rope_theta=rope_theta(data),
            vocab_size=int(data["vocab_size"]),
            draft_vocab_size=int(data["vocab_size"]),
            block_size=int(data["block_size"]),
            target_layer_ids=tuple(int(layer) for layer in data["target_layer_ids"]),
            mask_token_id=int(data["mask_token_id"]),
            markov_rank=rank,
            enable_confidence_head=confidence,
            confidence_head_with_markov=confidence and bool(data.get("confidence_head_with_markov", False)),
            max_position_embeddings=int(data.get("max_position_embeddings", 8192)),
        )
    except KeyError as error:
        raise InvalidRequest(str(error.args[0]), expected="a value in config.json", got=None) from error


def _deepspec_json(config: HiddenConfig, dtype: str) -> dict[str, Any]:
    layer = config.to_json()["transformer_layer_config"]
    return {
        **layer,
        "architectures": [_DEEPSPEC],
        "dtype": dtype,
        "block_size": config.block_size,
        "mask_token_id": config.mask_token_id,
        "target_layer_ids": list(config.target_layer_ids),
        "num_anchors": 512,
        "enable_confidence_head": config.enable_confidence_head,
        "confidence_head_with_markov": config.confidence_head_with_markov,
        "markov_rank": config.markov_rank,
        "markov_head_type": "vanilla",
    }


def _check_head(found: Tensor | None, own: Tensor) -> None:
    """A checkpoint's head is the target's own, up to rounding; another was trained, and would be lost."""
    if found is None:
        return
    if found.shape != own.shape:
        raise InvalidRequest("lm_head.weight", expected=str(list(own.shape)), got=list(found.shape))
    off = float((found.float() - own.float()).abs().max())
    if off > 2**-7 * float(own.float().abs().max()):
        raise Unsupported(
            "lm_head.weight", got=f"a head that differs from the target's by {off:.3g}", hint="train with it frozen"
        )
