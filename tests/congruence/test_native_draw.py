"""The kernels draw the tokens that the pure sampler draws."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from paceline.engine import native
from paceline.engine.native_draw import NativeDraw
from paceline.speculation.params import SamplingParams
from paceline.speculation.sampling import UNSURE, Row, sample
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16]
ROWS = 40


@pytest.fixture(params=DTYPES, ids=str)
def draw(request: pytest.FixtureRequest) -> NativeDraw:
    kernels = native.kernels(request.param, torch.device("cpu"))
    if kernels is None:
        pytest.skip("no kernels on this machine")
    return NativeDraw(kernels)


def logits_of(draw: NativeDraw, vocab: int, spread: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    dtype = draw._kernels.dtype
    return (torch.randn(ROWS, vocab, generator=generator) * spread).to(dtype)


def rows_of(temperature: float) -> list[Row]:
    seeds = [2**64 - 1 - 977 * i for i in range(ROWS)]
    params = [SamplingParams(temperature=temperature, seed=seed) for seed in seeds]
    return [Row(each, position=31 * i, choice=i % 5) for i, each in enumerate(params)]


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize(
    ("vocab", "spread"), [(1, 1.0), (100, 1.0), (128, 3.0), (1000, 0.0), (5003, 2.0), (40_000, 5.0)]
)
def test_tokens_are_the_samplers(draw: NativeDraw, vocab: int, spread: float, temperature: float) -> None:
    logits, rows = logits_of(draw, vocab, spread, seed=vocab), rows_of(temperature)
    assert sample(logits, rows, draw).tolist() == sample(logits, rows).tolist()


CUTS = [  # top-k, top-p, min-p
    (1, 1.0, 0.0), (7, 1.0, 0.0), (5000, 1.0, 0.0), (0, 0.05, 0.0), (0, 0.95, 0.0), (0, 1.0, 0.02), (0, 1.0, 0.5),
    (20, 0.8, 0.0), (500, 0.95, 0.0), (20, 1.0, 0.1), (0, 0.9, 0.05), (30, 0.9, 0.1),
    (500, 0.9, 0.3), (4, 0.6, 0.5), (5000, 0.5, 0.02),
]  # fmt: skip


@pytest.mark.parametrize("options", CUTS, ids=str)
@pytest.mark.parametrize(("vocab", "spread"), [(1, 1.0), (128, 3.0), (1000, 0.0), (5003, 2.0)])
def test_cut_tokens_are_the_samplers(
    draw: NativeDraw, vocab: int, spread: float, options: tuple[int, float, float]
) -> None:
    logits = logits_of(draw, vocab, spread, seed=vocab)
    logits[::7, : vocab // 2] = -math.inf
    top_k, top_p, min_p = options
    for temperature in (0.4, 1.0):
        rows = [
            replace(row, params=replace(row.params, top_k=top_k, top_p=top_p, min_p=min_p))
            for row in rows_of(temperature)
        ]
        drawn = draw(logits, rows)
        assert sample(logits, rows, draw).tolist() == sample(logits, rows).tolist()
        if spread:
            assert int((drawn == UNSURE).sum()) <= ROWS // 8  # it decides nearly all by itself


def test_what_rounding_might_decide_is_left_to_the_sampler(draw: NativeDraw) -> None:
    logits = torch.zeros(ROWS, 1000, dtype=draw._kernels.dtype)
    logits[:, 10:] = -math.inf  # ten tokens of one probability: top-p cuts exactly between two
    for params in (SamplingParams(top_p=0.5), SamplingParams(min_p=1.0)):
        rows = [Row(replace(params, seed=i), i) for i in range(ROWS)]
        assert (draw(logits, rows) == UNSURE).any()
        assert sample(logits, rows, draw).tolist() == sample(logits, rows).tolist()


def test_the_law_is_the_samplers_where_tokens_are_masked(draw: NativeDraw) -> None:
    logits, rows = logits_of(draw, 700, 1.0, seed=3), rows_of(1.0)
    logits[:, 5:] = -math.inf
    drawn = sample(logits, rows, draw)
    assert drawn.tolist() == sample(logits, rows).tolist()
    assert set(drawn.tolist()) == set(range(5))


def test_cut_and_whole_rows_may_stand_side_by_side(draw: NativeDraw) -> None:
    logits, rows = logits_of(draw, 3000, 2.0, seed=4), rows_of(1.0)
    for i in range(0, ROWS, 3):
        rows[i] = Row(SamplingParams(top_k=3, seed=i), i)
    for i in range(1, ROWS, 3):
        rows[i] = Row(SamplingParams(temperature=0), i)
    assert sample(logits, rows, draw).tolist() == sample(logits, rows).tolist()


@pytest.mark.parametrize("broken", [math.nan, math.inf, "all masked"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_told(draw: NativeDraw, broken: float | str, temperature: float) -> None:
    logits = logits_of(draw, 300, 1.0, seed=5)
    if isinstance(broken, str):
        logits[7] = -math.inf
    else:
        logits[7, 130] = broken
    with pytest.raises(FloatingPointError, match="the model is broken"):
        sample(logits, rows_of(temperature), draw)
