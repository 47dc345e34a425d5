"""The fake engine is an engine: same plans, same sampler, settable behaviour."""

from __future__ import annotations

import pytest
import torch
from paceline.engine.fake import FakeEngine, FakeOptions, fake_tokenizer_files, parse_options
from paceline.engine.fake_tokenizer import IM_END, IM_START, VOCAB_SIZE
from paceline.engine.interface import Engine, Slice, StepPlan
from paceline.engine.loading import EngineSpec, load_engine
from paceline.runtime.text import TextCodec
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.params import SamplingParams

PROMPT = tuple(b"once upon a time")


def answer(engine: Engine, count: int, *, seed: int = 0, temperature: float = 1.0, session: str = "s") -> list[int]:
    """``count`` tokens, one step each; the end of the answer is not minded."""
    sampling = SamplingParams(seed=seed, temperature=temperature)
    assert engine.reserve(session, len(PROMPT) + count)
    tokens, start = list(PROMPT), 0
    for _ in range(count):
        step = engine.step(
            StepPlan(0, (Slice(session, start, tuple(tokens[start:]), 1, sampling, prompt_len=len(PROMPT)),))
        )
        start = len(tokens)
        tokens += step.samples[0]
    engine.free(session)
    return tokens[len(PROMPT) :]


def test_a_fake_is_a_function_of_its_options() -> None:
    assert answer(FakeEngine(), 50) == answer(FakeEngine(), 50)
    assert answer(FakeEngine(), 50) != answer(FakeEngine(FakeOptions(seed=1)), 50)
    assert answer(FakeEngine(), 50, seed=1) != answer(FakeEngine(), 50, seed=2)


def test_a_chunk_samples_what_single_steps_do() -> None:
    engine = FakeEngine(FakeOptions(eos=0))
    drawn = answer(engine, 20)
    sampling = SamplingParams()
    engine.reserve("s", 100)
    tokens = PROMPT + tuple(drawn[:-1])
    step = engine.step(StepPlan(0, (Slice("s", 0, tokens, 20, sampling, prompt_len=len(PROMPT)),)))
    assert list(step.samples[0]) == drawn
    engine.check_integrity()


def test_rolled_back_tokens_are_forgotten() -> None:
    engine = FakeEngine()
    engine.reserve("s", 40)
    engine.forward(StepPlan(0, (Slice("s", 0, PROMPT, 0, SamplingParams(), 1),)))
    engine.forward(StepPlan(1, (Slice("s", 4, (65, 66), 0, SamplingParams(), 1),)))
    assert engine.held("s") == (*PROMPT[:4], 65, 66)
    engine.check_integrity()


def test_quality_sets_how_often_a_draft_agrees() -> None:
    target = FakeEngine(FakeOptions(eos=0))
    contexts = [(first, second) for first in range(97, 122) for second in range(97, 113)]

    def agreement(quality: float) -> float:
        draft = FakeEngine(FakeOptions(eos=0, quality=quality))
        same = [draft.next_logits(c).argmax() == target.next_logits(c).argmax() for c in contexts]
        return sum(map(bool, same)) / len(same)

    rates = [agreement(quality) for quality in (0.0, 0.5, 0.8, 1.0)]
    assert rates == sorted(rates)
    assert rates[0] < 0.15
    assert 0.5 < rates[2] < 0.95
    assert rates[3] == 1


def test_text_is_readable_and_ends_as_often_as_asked() -> None:
    codec = TextCodec(fake_tokenizer_files())
    text = codec.decode(answer(FakeEngine(FakeOptions(eos=0)), 200))
    assert sum(letter == " " or letter.islower() for letter in text) > 180
    draws = [
        FakeEngine(FakeOptions(eos=0.2)).next_logits((a, b)).argmax() == IM_END for a in range(30) for b in range(30)
    ]
    assert 0.15 < sum(map(bool, draws)) / len(draws) < 0.25
    assert answer(FakeEngine(FakeOptions(eos=1)), 1) == [IM_END]
    assert FakeEngine().info.eos_token_ids == (IM_END,)


def test_time_is_a_parameter() -> None:
    slept: list[float] = []
    options = parse_options("fake:step_ms=3,row_ms=0.5,quality=0.8")
    assert options == FakeOptions(step_ms=3, row_ms=0.5, quality=0.8)
    step = StepPlan(0, (Slice("s", 0, (1, 2), 1, SamplingParams(), 1),))
    engine = FakeEngine(options, sleep=slept.append)
    engine.reserve("s", 4)
    assert engine.step(step).duration_s == pytest.approx(0.004)
    assert slept == [pytest.approx(0.004)]
    assert engine.cost_curve()[0][1] == pytest.approx(0.0035)
    virtual = FakeEngine(sleep=None, duration=lambda plan: 7.0 * plan.rows)
    virtual.reserve("s", 4)
    assert virtual.step(step).duration_s == 14.0


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("fake:speed=1", "model"),
        ("fake:quality=high", "fake.quality"),
        ("fake:quality=1.5", "fake.quality"),
        ("fake:order=0", "fake.order"),
        ("demo", "model"),
    ],
)
def test_malformed_options_are_named(name: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_options(name)
    assert caught.value.field == field


def test_loading_by_name() -> None:
    loaded = load_engine(EngineSpec("fake:vocab_size=258,eos=0", kv_tokens=64))
    assert loaded.engine.info.kv_tokens == 64
    assert loaded.engine.info.vocab_size == VOCAB_SIZE
    assert not loaded.engine.reserve("s", 65)
    with pytest.raises(InvalidRequest, match="max_tokens"):
        loaded.engine.reserve("s", 10**6)
    other = FakeEngine(FakeOptions(quality=0.5))
    assert other.info.numerics_class != loaded.engine.info.numerics_class


def test_the_tokenizer_is_bytes_and_chatml() -> None:
    codec = TextCodec(fake_tokenizer_files())
    text = "héllo <|im_start|>user\n\x00 ✓"
    tokens = codec.encode(text)
    assert tokens.count(IM_START) == 1
    assert [token for token in tokens if token < 256] == list(text.replace("<|im_start|>", "").encode())
    assert codec.vocab_size == VOCAB_SIZE
    rendered = codec.render_chat([{"role": "user", "content": "hi"}])
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert codec.decode(list(b"caf\xc3\xa9")) == "café"


def test_any_vocabulary_size() -> None:
    engine = FakeEngine(FakeOptions(vocab_size=7, eos=0.5))
    assert engine.info.eos_token_ids == (6,)
    assert engine.next_logits((1, 2)).shape == (7,)
    assert torch.isfinite(engine.next_logits((1, 2))).any()
