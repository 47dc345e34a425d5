"""Tiny, randomly initialised models of several architectures, and plans to run on them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from paceline.engine.interface import Slice, StepPlan
from paceline.engine.native import Kernels
from paceline.engine.projection import Projector
from paceline.engine.torch_engine import TorchEngine, TorchOptions
from paceline.speculation.params import SamplingParams

VOCAB = 301  # odd, as nothing promises otherwise
GREEDY = SamplingParams(temperature=0.0)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.15,  # wide enough that attention matters and logits differ
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def configs() -> dict[str, Any]:
    """One configuration per kind of attention: grouped, one KV head and odd sizes, normed, soft-capped in windows,
    learned positions with transposed weights, and low-rank with keys wider than values."""
    gpt2: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 2, "n_head": 4, "initializer_range": 0.15}
    return {
        "llama": transformers.LlamaConfig(**_COMMON),
        "odd": transformers.LlamaConfig(
            **{**_COMMON, "hidden_size": 60, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 20}
        ),
        "qwen3": transformers.Qwen3Config(**_COMMON, head_dim=24),
        "gemma2": transformers.Gemma2Config(
            **_COMMON, head_dim=16, sliding_window=150, query_pre_attn_scalar=16, attn_logit_softcapping=5.0
        ),
        "gpt2": transformers.GPT2Config(**gpt2, bos_token_id=1, eos_token_id=2),
        "deepseek": transformers.DeepseekV3Config(
            **{**_COMMON, "num_key_value_heads": 4},
            first_k_dense_replace=2,
            q_lora_rank=32,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=16,
            v_head_dim=12,
        ),
    }


def tiny_model(config: Any, dtype: torch.dtype) -> Any:
    """A model with weights that are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto: Any = transformers.AutoModelForCausalLM
        return auto.from_config(copy.deepcopy(config), dtype=dtype).eval()


def tiny_engine(
    config: Any,
    dtype: torch.dtype = torch.float32,
    *,
    native: bool = True,
    multiplies: bool = True,
    projectors: Sequence[Projector] = (),
    **options: Any,
) -> TorchEngine:
    """An engine over ``tiny_model``; over torch alone if not ``native``, with oneDNN's products if not ``multiplies``,
    as on a processor with matrix units."""
    options = {"kv_tokens": 8192, **options}
    model = tiny_model(config, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACELINE_NATIVE", "1" if native else "0")
        if not multiplies:
            patch.setattr(Kernels, "multiplies", False)
        return TorchEngine(
            model, model_id="tiny", fingerprint="tiny", options=TorchOptions(**options), projectors=projectors
        )


def tokens_of(seed: int, count: int, vocab: int = VOCAB) -> tuple[int, ...]:
    """Some tokens."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, vocab, (count,), generator=generator).tolist())


def piece(session_id: str, start: int, tokens: Sequence[int], samples: int | None = None) -> Slice:
    """A greedy slice; all of its rows are sampled unless told otherwise."""
    count = len(tokens) if samples is None else samples
    return Slice(session_id, start, tuple(tokens), samples=count, sampling=GREEDY, prompt_len=1)


def plan(*slices: Slice) -> StepPlan:
    """A step."""
    return StepPlan(0, slices)
