"""What a hidden-state drafter is made of, and how a ``config.json`` says so.

The file is in the form of vLLM's ``speculators`` package (its names, its nesting), with one block more, ``paceline``,
for what it has no name for; ``speculators`` keeps fields it does not know. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paceline.speculation.errors import InvalidRequest, Unsupported

DSPARK = "dspark"
DFLASH = "dflash"
FORMAT = 1  # of the ``paceline`` block

_ARCHITECTURES = {DSPARK: "DSparkSpeculator", DFLASH: "DFlashSpeculator"}
SPECULATORS_VERSION = "0.9.0"  # whose names these are


@dataclass(frozen=True, slots=True)
class HiddenConfig:
    """Shape of a drafter. H is ``hidden_size``, L ``len(target_layer_ids)``, B ``block_size``, K ``draft_tokens``.

    Invariants: target_layer_ids strictly increase; hidden_size is the target's, whose embedding and head are used;
    query heads are a multiple of KV heads.
    """

    drafter: str  # dspark or dflash
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int  # of the drafter
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    vocab_size: int  # of the target
    draft_vocab_size: int  # rows of the target's head that are kept
    block_size: int  # rows of a block: the anchor and masks
    target_layer_ids: tuple[int, ...]  # -1 is the embedding's output, i that of decoder layer i
    mask_token_id: int
    markov_rank: int = 0  # 0: no Markov head
    enable_confidence_head: bool = False
    confidence_head_with_markov: bool = False
    sample_from_anchor: bool = True  # whether the anchor's own row predicts the token after it
    max_position_embeddings: int = 8192
    target_model: str = ""  # name or folder of the target
    target_architecture: str = ""
    target_fingerprint: str = ""  # engine.numerics.fingerprint of the target's folder; empty is not checked

    def __post_init__(self) -> None:
        """Raises InvalidRequest for a shape that cannot be."""
        if self.drafter not in _ARCHITECTURES:
            raise InvalidRequest("speculators_model_type", expected=" or ".join(_ARCHITECTURES), got=self.drafter)
        check_shape(self, "num_hidden_layers", "block_size")
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise InvalidRequest("mask_token_id", expected=f"a token below {self.vocab_size}", got=self.mask_token_id)
        self._check_heads()
        check_layer_ids(self.target_layer_ids)

    def _check_heads(self) -> None:
        if self.markov_rank < 0:
            raise InvalidRequest("markov_rank", expected="0 or more", got=self.markov_rank)
        if self.drafter == DFLASH and (self.markov_rank or self.enable_confidence_head):
            raise InvalidRequest("markov_rank", expected="no Markov and no confidence head in dflash", got=self.drafter)
        if self.confidence_head_with_markov and not (self.markov_rank and self.enable_confidence_head):
            raise InvalidRequest(
                "confidence_head_with_markov", expected="a Markov head and a confidence head", got=self.markov_rank
            )
        if self.draft_tokens < 1:
            raise InvalidRequest("block_size", expected="at least 2 when the anchor predicts nothing", got=1)

    @property
    def draft_tokens(self) -> int:
        """K: tokens a block drafts."""
        return self.block_size if self.sample_from_anchor else self.block_size - 1

    @property
    def first_row(self) -> int:
        """The first row of a block that predicts; row r of the K that do predicts the token r + 1 after the anchor."""
        return 0 if self.sample_from_anchor else 1

    def to_json(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        return {
            "architectures": [_ARCHITECTURES[self.drafter]],
            "speculators_model_type": self.drafter,
            "speculators_version": SPECULATORS_VERSION,
            "speculators_config": speculators_block(
                self.drafter, self.draft_tokens, self.target_model, self.target_architecture
            ),
            "transformer_layer_config": self._layer_config(),
            "draft_vocab_size": self.draft_vocab_size,
            "block_size": self.block_size,
            "target_hidden_size": None,
            # speculators counts hidden states: 0 is the embedding's output, i + 1 that of decoder layer i
            "aux_hidden_state_layer_ids": [layer + 1 for layer in self.target_layer_ids],
            "mask_token_id": self.mask_token_id,
            "sample_from_anchor": self.sample_from_anchor,
            **(self._heads_json() if self.drafter == DSPARK else {}),
            "paceline": {"format": FORMAT, "target_fingerprint": self.target_fingerprint},
        }

    def _heads_json(self) -> dict[str, Any]:
        return {
            "markov_rank": self.markov_rank,
            "markov_head_type": "vanilla",
            "enable_confidence_head": self.enable_confidence_head,
            "confidence_head_with_markov": self.confidence_head_with_markov,
        }

    def _layer_config(self) -> dict[str, Any]:
        return {
            "model_type": "qwen3",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "max_position_embeddings": self.max_position_embeddings,
            "layer_types": ["full_attention"] * self.num_hidden_layers,
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": False,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HiddenConfig:
        """Read the content of a ``config.json``.

        Raises InvalidRequest for a field that is missing or wrong, Unsupported for a drafter or a variant that is not
        served (EAGLE-3, windows, other heads).
        """
        kind = data.get("speculators_model_type")
        if kind not in _ARCHITECTURES:
            hint = "train or import a dspark or dflash drafter"
            raise Unsupported("speculators_model_type", got=kind, hint=hint)
        layer = need(data, "transformer_layer_config")
        _refuse_variants(data, layer)
        own = check_format(data)
        verifier = (data.get("speculators_config") or {}).get("verifier") or {}
        dspark = kind == DSPARK
        heads = int(need(layer, "num_attention_heads"))
        return cls(
            drafter=kind,
            hidden_size=int(need(layer, "hidden_size")),
            intermediate_size=int(need(layer, "intermediate_size")),
            num_hidden_layers=int(need(layer, "num_hidden_layers")),
            num_attention_heads=heads,
            num_key_value_heads=int(layer.get("num_key_value_heads") or heads),
            head_dim=int(layer.get("head_dim") or need(layer, "hidden_size") // heads),
            rms_norm_eps=float(layer.get("rms_norm_eps", 1e-6)),
            rope_theta=rope_theta(layer),
            vocab_size=int(need(layer, "vocab_size")),
            draft_vocab_size=int(need(data, "draft_vocab_size")),
            block_size=int(need(data, "block_size")),
            target_layer_ids=tuple(int(layer_id) - 1 for layer_id in need(data, "aux_hidden_state_layer_ids")),
            mask_token_id=int(need(data, "mask_token_id")),
            markov_rank=int(data.get("markov_rank", 256)) if dspark else 0,
            enable_confidence_head=bool(data.get("enable_confidence_head", True)) if dspark else False,
            confidence_head_with_markov=bool(data.get("confidence_head_with_markov", True)) if dspark else False,
            sample_from_anchor=bool(data.get("sample_from_anchor", dspark)),
            max_position_embeddings=int(layer.get("max_position_embeddings", 32768)),
            target_model=verifier.get("name_or_path") or "",
            target_architecture=next(iter(verifier.get("architectures") or []), ""),
            target_fingerprint=own.get("target_fingerprint", ""),
        )


def speculators_block(algorithm: str, tokens: int, target: str, architecture: str) -> dict[str, Any]:
    """What ``speculators_config`` says: how many tokens a drafter drafts, and for whom."""
    return {
        "algorithm": algorithm,
        "default_proposal_method": "greedy",
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": tokens}],
        "verifier": {"name_or_path": target or None, "architectures": [architecture] if architecture else []},
    }


def check_format(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``paceline`` block. Raises InvalidRequest for a format there is not (yet)."""
    own: Mapping[str, Any] = data.get("paceline") or {}
    if own.get("format", FORMAT) != FORMAT:
        raise InvalidRequest("paceline.format", expected=str(FORMAT), got=own["format"], hint="update Paceline")
    return own


_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "draft_vocab_size",
)


def check_shape(shape: Any, *sizes: str) -> None:
    """What holds of every drafter's shape, a HiddenConfig or an EagleConfig.

    Args:
        sizes: further fields of it that are at least 1.

    Raises InvalidRequest for a shape that cannot be.
    """
    for name in (*_SIZES, *sizes):
        if getattr(shape, name) < 1:
            raise InvalidRequest(name, expected="at least 1", got=getattr(shape, name))
    if shape.draft_vocab_size > shape.vocab_size:
        raise InvalidRequest(
            "draft_vocab_size", expected=f"at most vocab_size ({shape.vocab_size})", got=shape.draft_vocab_size
        )
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise InvalidRequest(
            "num_attention_heads",
            expected=f"a multiple of num_key_value_heads ({shape.num_key_value_heads})",
            got=shape.num_attention_heads,
        )
    if shape.head_dim % 2:
        raise InvalidRequest("head_dim", expected="an even number (rotary embedding)", got=shape.head_dim)


def check_layer_ids(layer_ids: tuple[int, ...]) -> None:
    """Raises InvalidRequest unless they strictly increase from -1 on."""
    ordered = all(later > earlier for earlier, later in itertools.pairwise(layer_ids))
    if not layer_ids or layer_ids[0] < -1 or not ordered:
        raise InvalidRequest(
            "target_layer_ids", expected="strictly increasing layers, -1 for the embedding", got=list(layer_ids)
        )


def default_layer_ids(target_layers: int, count: int = 5) -> tuple[int, ...]:
    """``count`` of a target's layers, from the second to the third from the end, evenly spread.

    DeepSpec's spacing: 1, 9, 17, 25, 33 of Qwen3-4B's 36 layers.
    """
    first, last = min(1, target_layers - 1), max(target_layers - 3, 0)
    if last <= first or count == 1:
        return (last,)
    spread = {first + round(step * (last - first) / (count - 1)) for step in range(count)}
    return tuple(sorted(spread))


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's scaling of the rotary embedding; transformers calls it ``llama3``."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


def rope_theta(layer: Mapping[str, Any]) -> float:
    """The rotary base of a layer config, as transformers writes it now (nested) or did before.

    Raises Unsupported for scaled rotary embeddings.
    """
    return _theta(layer, ("default",))[0]


def rope(layer: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """``rope_theta``, and the scaling. Raises Unsupported for another scaling than Llama 3.1's."""
    theta, given = _theta(layer, ("default", "llama3"))
    if given.get("rope_type", "default") == "default":
        return theta, None
    names = [field.name for field in dataclasses.fields(RopeScaling)]
    return theta, RopeScaling(**{name: need(given, name) for name in names})


def _theta(layer: Mapping[str, Any], served: tuple[str, ...]) -> tuple[float, Mapping[str, Any]]:
    """The rotary base, and what is said of its scaling."""
    nested = layer.get("rope_parameters") or {}
    given = nested if "rope_type" in nested else layer.get("rope_scaling") or {}
    kind = given.get("rope_type") or "default"
    if kind not in served or nested.get("partial_rotary_factor", 1.0) != 1.0:
        field = "transformer_layer_config.rope_parameters"
        raise Unsupported(field, got=kind, hint="use the default rotary embedding")
    return float(nested.get("rope_theta") or layer.get("rope_theta") or 10000.0), given


def _refuse_variants(data: Mapping[str, Any], layer: Mapping[str, Any]) -> None:
    served = {
        "transformer_layer_config.model_type": (layer.get("model_type", "qwen3"), "qwen3"),
        "transformer_layer_config.hidden_act": (layer.get("hidden_act", "silu"), "silu"),
        "transformer_layer_config.attention_bias": (bool(layer.get("attention_bias", False)), False),
        "markov_head_type": (data.get("markov_head_type", "vanilla"), "vanilla"),
    }
    for field, (got, only) in served.items():
        if got != only:
            raise Unsupported(field, got=got, hint=f"only {only!r} is served")
    if any(kind != "full_attention" for kind in layer.get("layer_types") or ()):
        raise Unsupported("transformer_layer_config.layer_types", got=layer["layer_types"], hint="use full attention")
    target_hidden = data.get("target_hidden_size")
    if target_hidden not in (None, layer.get("hidden_size")):
        raise Unsupported("target_hidden_size", got=target_hidden, hint="drafter and target share their hidden size")


def need(data: Mapping[str, Any], field: str) -> Any:
    """A field's value. Raises InvalidRequest if there is none."""
    if data.get(field) is None:
        raise InvalidRequest(field, expected="a value in config.json", got=None)
    return data[field]
