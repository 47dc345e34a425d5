"""What an EAGLE-3 drafter is made of, and how a ``config.json`` in the form of vLLM's ``speculators`` says so.

Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paceline.drafters.hidden.config import (
    FORMAT,
    SPECULATORS_VERSION,
    RopeScaling,
    check_format,
    check_layer_ids,
    check_shape,
    need,
    rope,
    speculators_block,
)
from paceline.speculation.errors import InvalidRequest, Unsupported

EAGLE3 = "eagle3"
LLAMA, QWEN3 = "llama", "qwen3"  # whose decoder layer it is made from; qwen3's norms each query and key head
DEFAULT_DRAFT_TOKENS = 7  # steps of the paper's training-time test


@dataclass(frozen=True, slots=True)
class EagleConfig:
    """Shape of an EAGLE-3 drafter of one layer. H is ``hidden_size``, L ``len(target_layer_ids)``.

    Invariants: target_layer_ids strictly increase; hidden_size is the target's; query heads are a multiple of KV heads.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    vocab_size: int  # of the target
    draft_vocab_size: int  # rows of its own head
    target_layer_ids: tuple[int, ...]  # -1 is the embedding's output, i that of decoder layer i
    rope_scaling: RopeScaling | None = None
    model_type: str = LLAMA
    draft_tokens: int = DEFAULT_DRAFT_TOKENS  # K: at most so many are drafted
    norm_before_residual: bool = False  # the layer's residual is the normed hidden state, not the hidden state
    norm_before_fc: bool = False  # one norm over the target's L hidden states side by side, before their projection
    fc_norm: bool = False  # instead a norm of each
    norm_output: bool = False  # what is fed back is the normed output of the layer, not the output
    max_position_embeddings: int = 8192
    target_model: str = ""  # name or folder of the target
    target_architecture: str = ""
    target_fingerprint: str = ""  # engine.numerics.fingerprint of the target's folder; empty is not checked

    def __post_init__(self) -> None:
        """Raises InvalidRequest for a shape that cannot be."""
        check_shape(self, "draft_tokens")
        if self.norm_before_fc and self.fc_norm:
            raise InvalidRequest("fc_norm", expected="norm_before_fc or fc_norm, not both", got=True)
        check_layer_ids(self.target_layer_ids)

    @property
    def drafter(self) -> str:
        """What sessions ask for it by."""
        return EAGLE3

    @property
    def block_size(self) -> int:
        """Positions that drafting needs behind a context."""
        return self.draft_tokens

    def to_json(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        return {
            "architectures": ["Eagle3Speculator"],
            "speculators_model_type": EAGLE3,
            "speculators_version": SPECULATORS_VERSION,
            "speculators_config": speculators_block(
                EAGLE3, self.draft_tokens, self.target_model, self.target_architecture
            ),
            "transformer_layer_config": self._layer_config(),
            "draft_vocab_size": self.draft_vocab_size,
            "target_hidden_size": None,
            "norm_before_residual": self.norm_before_residual,
            "norm_before_fc": self.norm_before_fc,
            "fc_norm": self.fc_norm,
            "norm_output": self.norm_output,
            # speculators counts hidden states: 0 is the embedding's output, i + 1 that of decoder layer i
            "eagle_aux_hidden_state_layer_ids": [layer + 1 for layer in self.target_layer_ids],
            "paceline": {"format": FORMAT, "target_fingerprint": self.target_fingerprint},
        }

    def _layer_config(self) -> dict[str, Any]:
        return {
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": 1,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": self._rope_json(),
            "max_position_embeddings": self.max_position_embeddings,
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": False,
        }

    def _rope_json(self) -> dict[str, Any]:
        if self.rope_scaling is None:
            return {"rope_type": "default", "rope_theta": self.rope_theta}
        return {"rope_type": "llama3", "rope_theta": self.rope_theta, **dataclasses.asdict(self.rope_scaling)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EagleConfig:
        """Read the content of a ``config.json`` that leaves nothing to defaults.

        Raises InvalidRequest for a field that is missing or wrong, Unsupported for a variant that is not served.
        """
        layer = need(data, "transformer_layer_config")
        _refuse_variants(data, layer)
        own = check_format(data)
        block = data.get("speculators_config") or {}
        verifier = block.get("verifier") or {}
        heads = int(need(layer, "num_attention_heads"))
        theta, scaling = rope(layer)
        return cls(
            hidden_size=int(need(layer, "hidden_size")),
            intermediate_size=int(need(layer, "intermediate_size")),
            num_attention_heads=heads,
            num_key_value_heads=int(layer.get("num_key_value_heads") or heads),
            head_dim=int(layer.get("head_dim") or need(layer, "hidden_size") // heads),
            rms_norm_eps=float(layer.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            vocab_size=int(need(layer, "vocab_size")),
            draft_vocab_size=int(need(data, "draft_vocab_size")),
            target_layer_ids=tuple(int(each) - 1 for each in need(data, "eagle_aux_hidden_state_layer_ids")),
            model_type=layer["model_type"],
            draft_tokens=_draft_tokens(block),
            norm_before_residual=bool(data.get("norm_before_residual", False)),
            norm_before_fc=bool(data.get("norm_before_fc", False)),
            fc_norm=bool(data.get("fc_norm", False)),
            norm_output=bool(data.get("norm_output", False)),
            max_position_embeddings=int(layer.get("max_position_embeddings", 32768)),
            target_model=verifier.get("name_or_path") or "",
            target_architecture=next(iter(verifier.get("architectures") or []), ""),
            target_fingerprint=own.get("target_fingerprint", ""),
        )


def _draft_tokens(block: Mapping[str, Any]) -> int:
    """The tokens the first proposal method speculates."""
    methods = block.get("proposal_methods") or [{}]
    return int(methods[0].get("speculative_tokens") or DEFAULT_DRAFT_TOKENS)


def _refuse_variants(data: Mapping[str, Any], layer: Mapping[str, Any]) -> None:
    kind = need(layer, "model_type")
    if kind not in (LLAMA, QWEN3):
        hint = f"only {LLAMA} and {QWEN3} are served"
        raise Unsupported("transformer_layer_config.model_type", got=kind, hint=hint)
    served = {
        "num_hidden_layers": (int(need(layer, "num_hidden_layers")), 1),
        "hidden_act": (layer.get("hidden_act", "silu"), "silu"),
        "attention_bias": (bool(layer.get("attention_bias", False)), False),
        "mlp_bias": (bool(layer.get("mlp_bias", False)), False),
    }
    for field, (got, only) in served.items():
        if got != only:
            raise Unsupported(f"transformer_layer_config.{field}", got=got, hint=f"only {only!r} is served")
    if any(each != "full_attention" for each in layer.get("layer_types") or ()):
        raise Unsupported("transformer_layer_config.layer_types", got=layer["layer_types"], hint="use full attention")
    width = data.get("target_hidden_size")
    if width not in (None, layer.get("hidden_size")):
        raise Unsupported("target_hidden_size", got=width, hint="drafter and target share their hidden size")
