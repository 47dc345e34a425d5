"""The engine computes what Hugging Face computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from paceline.speculation.errors import Unsupported

from tests.congruence.engine_tiny import VOCAB, configs, piece, plan, tiny_engine, tiny_model, tokens_of

ARCHITECTURES = sorted(configs())


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_are_close_to_its_own_forward(arch: str, native: bool) -> None:
    config = configs()[arch]
    tokens = tokens_of(3, 200)
    with torch.no_grad():
        expected = tiny_model(config, torch.float32)(torch.tensor([tokens])).logits[0]
    engine = tiny_engine(config, native=native)
    assert engine.reserve("a", 200)
    logits = engine.forward(plan(piece("a", 0, tokens)))
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_other_mode_computes_the_same_up_to_rounding_and_is_a_class_of_its_own(dtype: torch.dtype) -> None:
    config, tokens = configs()["llama"], tokens_of(3, 200)
    engines = [tiny_engine(config, dtype=dtype, deterministic=deterministic) for deterministic in (True, False)]
    logits = []
    for engine in engines:
        assert engine.reserve("a", 200)
        logits.append(engine.forward(plan(piece("a", 0, tokens))).float())
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4 if dtype is torch.float32 else 0.1, rtol=0)
    assert engines[0].info.numerics_class != engines[1].info.numerics_class
    assert engines[1].info.numerics["matmul"] == "free"


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_greedy_answers_are_those_of_generate(arch: str, native: bool) -> None:
    config = configs()[arch]
    prompt = tokens_of(4, 12)
    model = tiny_model(config, torch.float32)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=40,
            pad_token_id=0,
        )
    engine = tiny_engine(config, native=native)
    assert engine.reserve("a", 60)
    tokens, start = list(prompt), 0
    while len(tokens) < out.shape[1]:
        result = engine.step(plan(piece("a", start, tokens[start:], 1)))
        start = len(tokens)
        tokens += result.samples[0]
    assert tokens == out[0].tolist()


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (
            transformers.Qwen3MoeConfig(
                vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                intermediate_size=32, moe_intermediate_size=16, num_experts=8, pad_token_id=0, eos_token_id=2,
                bos_token_id=1,
            ),
            "Qwen3Moe",
        ),
        (
            transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=2),
            "0 of 2 layers",
        ),
        (
            transformers.LlamaConfig(
                vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
            ),
            "dynamic",
        ),
    ],
)  # fmt: skip
def test_models_whose_bits_cannot_be_kept_are_refused_by_name(config: Any, named: str) -> None:
    with pytest.raises(Unsupported, match=named):
        tiny_engine(config)
