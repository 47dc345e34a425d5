"""The demo model: the same promises on real weights, and what a step costs beside Hugging Face's own."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
import torch
from paceline.engine.interface import StepPlan
from paceline.engine.loading import EngineSpec, load_engine, load_model
from paceline.engine.models import fetch
from paceline.engine.torch_engine import TorchEngine
from paceline.runtime.text import TextCodec

from tests.congruence.engine_tiny import piece, plan, tokens_of

pytestmark = pytest.mark.model
CONTEXT = 256


@pytest.fixture(scope="module")
def demo() -> tuple[TorchEngine, TextCodec]:
    loaded = load_engine(EngineSpec("demo", kv_tokens=16 * (CONTEXT + 64)))
    assert isinstance(loaded.engine, TorchEngine)
    return loaded.engine, TextCodec(loaded.tokenizer_files)


def test_drafts_chunks_and_neighbours_change_no_bit(demo: tuple[TorchEngine, TextCodec]) -> None:
    engine, codec = demo
    tokens = tuple(codec.encode(codec.render_chat([{"role": "user", "content": "Count from one to forty."}])))
    tokens += tokens_of(1, 150 - len(tokens), engine.info.vocab_size)
    for name in ("whole", "pieces", "neighbour"):
        assert engine.reserve(name, 200)
    whole = engine.forward(plan(piece("whole", 0, tokens)))
    engine.forward(plan(piece("pieces", 0, tokens[:120], 0)))
    for at in range(120, 135):
        drafts = tokens[at : at + 1] + tokens_of(at, at % 9)
        logits = engine.forward(plan(piece("neighbour", 0, tokens_of(at, 1 + at % 40)), piece("pieces", at, drafts)))
        assert torch.equal(logits[1 + at % 40], whole[at]), at
    for name in ("whole", "pieces", "neighbour"):
        engine.free(name)
    engine.check_integrity()


def test_it_answers(demo: tuple[TorchEngine, TextCodec]) -> None:
    engine, codec = demo
    prompt = codec.encode(codec.render_chat([{"role": "user", "content": "What is the capital of France?"}]))
    assert engine.reserve("answer", len(prompt) + 24)
    tokens, start = list(prompt), 0
    while len(tokens) < len(prompt) + 24 and tokens[-1] not in engine.info.eos_token_ids:
        result = engine.step(plan(piece("answer", start, tokens[start:], 1)))
        start = len(tokens)
        tokens += result.samples[0]
    engine.free("answer")
    assert "Paris" in codec.decode(tokens[len(prompt) :])


def test_what_a_step_costs(demo: tuple[TorchEngine, TextCodec], capsys: pytest.CaptureFixture[str]) -> None:
    engine, _ = demo
    shapes = {"1 × 1": (1, 1), "1 × 9": (1, 9), "1 × 16": (1, 16), "16 × 1": (16, 1), "1 × 64": (1, 64)}
    for number in range(16):
        assert engine.reserve(f"s{number}", CONTEXT + 64)
        engine.forward(plan(piece(f"s{number}", 0, tokens_of(number, CONTEXT), 0)))
    own = _hugging_face_step()
    seconds: dict[str, list[float]] = {"Hugging Face, 1 token": [], **{name: [] for name in shapes}}
    for round_number in range(7):  # interleaved, so that a busy machine is busy for all
        seconds["Hugging Face, 1 token"].append(own())
        for name, (sessions, rows) in shapes.items():
            step = StepPlan(0, tuple(piece(f"s{i}", CONTEXT, tokens_of(round_number, rows)) for i in range(sessions)))
            seconds[name].append(engine.step(step).duration_s)
    with capsys.disabled():
        lines = [f"step at context {CONTEXT}, sessions × rows, ms least (median):"]
        for name, times in seconds.items():
            lines.append(f"  {name:22s} {1e3 * min(times):6.1f} ({1e3 * sorted(times)[len(times) // 2]:.1f})")
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    for number in range(16):
        engine.free(f"s{number}")


def _hugging_face_step() -> Any:
    """A function that runs one cached one-token step as transformers does it, and returns its seconds."""
    model = load_model(fetch("demo"), dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        cache = model(torch.tensor([tokens_of(0, CONTEXT)]), use_cache=True).past_key_values

    @torch.inference_mode()
    def step() -> float:
        started = time.perf_counter()
        logits = model(torch.tensor([[5]]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        logits.argmax()
        seconds = time.perf_counter() - started
        cache.crop(-1)
        return seconds

    return step
