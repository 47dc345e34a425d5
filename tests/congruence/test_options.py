"""Speculation changes no token under any option: verifier and drafters against plain decoding of the same model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from paceline.drafters.interface import Drafter
from paceline.drafters.model import ModelDrafter
from paceline.drafters.ngram import NgramDrafter
from paceline.engine.fake import FakeEngine, FakeOptions
from paceline.speculation.messages import (
    SessionOpen,
)
from paceline.speculation.params import SamplingParams
from paceline.speculation.sampling import Row, sample

from tests.congruence.answer_kit import Run
from tests.unit.shaping_reference import shaped_slowly

TABLE = FakeOptions(seed=2, order=1, spread=0.8, eos=0.05)
EOS = TABLE.eos_token_id
PROMPT = tuple(b"once upon a time, upon a hill")
LENGTH = 40

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "repetition": {"repetition_penalty": 1.3},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.8},
    "bias": {"logit_bias": ((ord("e"), 4.0), (ord("a"), -100.0))},
    "min_tokens": {"min_tokens": 20},
    "min_tokens with stops": {"min_tokens": 12, "stop_token_ids": (ord("e"), ord("t"))},
    "bad words": {"bad_words": (tuple(b"a"), tuple(b" t"), tuple(b"the"), tuple(b"ll"))},
    "all": {
        "repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.2, "min_tokens": 15,
        "logit_bias": ((ord("z"), 2.5),), "bad_words": (tuple(b"e"),), "top_k": 30, "top_p": 0.95, "min_p": 0.01,
    },
}  # fmt: skip


def opening_of(options: dict[str, Any], **changes: Any) -> SessionOpen:
    sampling = SamplingParams(**({"max_tokens": LENGTH, "seed": 11, "temperature": 0.8} | options))
    fields: dict[str, Any] = {"session_id": "s", "lease_epoch": 1, "router_id": "r", "tokens": PROMPT, "choice": 2}
    return SessionOpen(**(fields | {"prompt_len": len(PROMPT), "sampling": sampling} | changes))


@cache
def plain(name: str, temperature: float) -> tuple[int, ...]:
    """The model alone: its next logits, shaped the slow way, sampled."""
    opening = opening_of(OPTIONS[name] | {"temperature": temperature})
    params, engine, output = opening.sampling, FakeEngine(TABLE, sleep=None), list[int]()
    while len(output) < params.max_tokens:
        logits = engine.next_logits([*PROMPT, *output])
        shaped = torch.from_numpy(shaped_slowly(logits.tolist(), params, PROMPT, output, eos=EOS))
        output.append(int(sample(shaped[None], [Row(params, len(output), opening.choice)])[0]))
        if output[-1] in {EOS, *params.stop_token_ids}:
            break
    return tuple(output)


def drafter_of(name: str) -> Drafter | None:
    if name == "model":
        return ModelDrafter(FakeEngine(replace(TABLE, quality=0.85), sleep=None))
    return NgramDrafter() if name == "ngram" else None


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("drafter", "k"), [("off", 0), ("ngram", 4), ("model", 1), ("model", 4), ("model", 8)])
def test_an_option_means_the_same_with_drafts_and_without(name: str, drafter: str, k: int, temperature: float) -> None:
    expected = plain(name, temperature)
    run = Run(TABLE, opening_of(OPTIONS[name] | {"temperature": temperature}), drafter_of(drafter), k)
    assert run.all() == expected
    assert (run.accepted > 0) == (drafter != "off") or drafter == "ngram"


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("move_after", [1, 7, 13])
def test_an_option_survives_a_failover(name: str, move_after: int) -> None:
    """Another verifier knows prompt, output and how much of it is which."""
    run = Run(TABLE, opening_of(OPTIONS[name]), drafter_of("model"), 4)
    assert run.all(move_after=move_after) == plain(name, 0.8)


def test_the_options_matter() -> None:
    """Each changes the answer, so the tests above would notice if it were left out."""
    answers = [plain(name, 0.8) for name in OPTIONS]
    assert len(set(answers)) == len(answers)


def test_min_tokens_and_bad_words_hold() -> None:
    free, text = plain("none", 0.8), bytes(token for token in plain("bad words", 0.8) if token != EOS)
    assert len(free) < 20 <= len(plain("min_tokens", 0.8)) - 1
    assert not any(bytes(word) in b"l" + text for word in OPTIONS["bad words"]["bad_words"])


def test_the_model_drafter_needs_the_options_too() -> None:
    """The same drafts without them would agree less often."""
    options = {"repetition_penalty": 2.0, "temperature": 0.8, "ignore_eos": True}
    with_them = Run(TABLE, opening_of(options), drafter_of("model"), 4)
    without = Run(TABLE, opening_of(options), drafter_of("model"), 4)
    without.session.sampling = replace(without.session.sampling, repetition_penalty=1.0)
    assert with_them.all() == without.all()
    assert with_them.accepted > without.accepted


@pytest.mark.parametrize(("drafter", "k"), [("off", 0), ("model", 1), ("model", 4)])
def test_options_that_contradict_each_other_end_the_answer_where_they_do(drafter: str, k: int) -> None:
    """Two letters are left, of which neither may come twice, nor again after the other: two tokens, then none."""
    x, y = b"xy"
    others = [token for token in range(TABLE.vocab_size) if token not in {x, y}]
    words = (*((token,) for token in others[64:]), (x, x), (y, y), (x, y, x), (y, x, y))
    stops = {"stop_token_ids": tuple(others[:64]), "min_tokens": LENGTH}
    run = Run(TABLE, opening_of({"bad_words": words, "temperature": 0.0, **stops}), drafter_of(drafter), k)
    output = run.all()
    assert run.dead_end
    assert sorted(output) == [x, y]
    assert (run.accepted > 0) == (drafter == "model")


@pytest.mark.parametrize(("drafter", "k"), [("off", 0), ("model", 4)])
@pytest.mark.parametrize("step_tokens", [64, 5])
def test_log_probabilities_are_the_models_own(drafter: str, k: int, step_tokens: int) -> None:
    """Of every committed token and of the prompt, prefilled whole or in chunks: before temperature and options."""
    options = OPTIONS["all"] | {"logprobs": 3, "prompt_logprobs": 2}
    run = Run(TABLE, opening_of(options), drafter_of(drafter), k, step_tokens=step_tokens)
    output = run.all()
    assert output == plain("all", 0.8)
    text = (*PROMPT, *output)
    reported = [*run.prompt_logprobs, *run.logprobs]
    assert [len(run.prompt_logprobs), len(run.logprobs)] == [len(PROMPT) - 1, len(output)]
    model = FakeEngine(TABLE, sleep=None)
    for place, each in enumerate(reported, start=1):
        expected = torch.log_softmax(model.next_logits(text[:place]).double(), dim=0)
        order = sorted(range(len(expected)), key=lambda token: (-float(expected[token]), token))
        count = 2 if place < len(PROMPT) else 3
        assert each.logprob == pytest.approx(float(expected[text[place]]), abs=1e-5)
        assert each.top_ids == tuple(order[:count])
        assert each.top_logprobs == pytest.approx([float(expected[token]) for token in order[:count]], abs=1e-5)
        assert each.rank == order.index(text[place]) + 1


def test_a_prompts_log_probabilities_come_once() -> None:
    """Not again after a move, but still after one that came before any output."""
    run = Run(TABLE, opening_of({"prompt_logprobs": 0}), None, 0)
    run.move()
    run.all(move_after=5)
    assert len(run.prompt_logprobs) == len(PROMPT) - 1
    assert run.logprobs == []
