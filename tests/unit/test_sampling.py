"""The sampler against a slow, obvious one; its independence of neighbours; its edges."""

from __future__ import annotations

import math
import random
from itertools import accumulate, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.speculation.cutting import survivors
from paceline.speculation.noise import Noise
from paceline.speculation.params import SamplingParams
from paceline.speculation.sampling import Row, probabilities, sample
from torch import Tensor


def _logits(rows: int, vocabulary: int, scale: float, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))).to(dtype)


def _slow(logits: Tensor, row: Row) -> int:
    """Evaluates the noise of every token there is."""
    vocabulary = logits.shape[0]
    if row.params.greedy:
        return min(range(vocabulary), key=lambda token: (-float(logits[token]), token))
    noise = Noise([row.params.seed], [row.choice], [row.position])
    tokens = torch.arange(vocabulary)
    exponentials = noise.at(torch.zeros_like(tokens), tokens)
    scores = logits.double() / row.params.temperature - torch.log(exponentials)
    kept = set(survivors(logits, row.params).tolist())
    best: int = max(kept, key=lambda token: (float(scores[token]), -token))
    return best


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 10_000]),
    top_p=st.sampled_from([0.1, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)
rows = st.builds(Row, params, st.integers(0, 2**31), st.integers(0, 1000))


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, min_size=1, max_size=6), st.sampled_from([3, 128, 700]), st.sampled_from([0.0, 1.0, 6.0]))
def test_sample_is_the_slow_sampler(described: list[Row], vocabulary: int, scale: float) -> None:
    logits = _logits(len(described), vocabulary, scale, vocabulary)
    expected = [_slow(logits[i], row) for i, row in enumerate(described)]
    assert sample(logits, described).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    logits = _logits(40, 5000, 2.0, 1, dtype)
    described = [Row(SamplingParams(seed=i, top_p=0.9 if i % 2 else 1.0), position=i) for i in range(40)]
    together = sample(logits, described).tolist()
    assert together == [int(sample(logits[i : i + 1], [row])[0]) for i, row in enumerate(described)]
    assert together[::-1] == sample(logits.flip(0), described[::-1]).tolist()


def test_equal_logits_go_to_the_lowest_token_when_greedy() -> None:
    assert sample(torch.zeros(1, 500), [Row(SamplingParams(temperature=0), 0)]).tolist() == [0]


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.full((200, 1000), -math.inf)
    logits[:, [3, 900]] = 0.0
    drawn = sample(logits, [Row(SamplingParams(seed=1), position) for position in range(200)])
    assert set(drawn.tolist()) == {3, 900}


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_broken_logits_are_refused(poison: float) -> None:
    logits = torch.zeros(2, 300)
    logits[1, 17] = poison
    with pytest.raises(FloatingPointError, match="model is broken"):
        sample(logits, [Row(SamplingParams(), 0), Row(SamplingParams(), 0)])


def test_as_many_rows_as_logits() -> None:
    with pytest.raises(ValueError, match="expected 2"):
        sample(torch.zeros(2, 4), [])
    assert sample(torch.zeros(0, 4), []).tolist() == []


LADDER = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_p": 0.7}, [0, 1]),
        ({"top_p": 0.71}, [0, 1, 2]),
        ({"top_p": 0.05}, [0]),
        ({"min_p": 0.6}, [0, 1]),
        ({"min_p": 1.0}, [0]),
        ({"top_k": 3, "top_p": 0.75}, [0, 1]),
        ({"temperature": 0.25, "top_p": 0.9}, [0, 1]),
        ({"top_k": 3, "top_p": 0.5, "min_p": 0.6}, [0, 1]),  # with min-p first, 0 alone is half of what is left
        ({"top_k": 5, "top_p": 0.72, "min_p": 0.4}, [0, 1, 2]),  # top-k keeps all there are
    ],
)
def test_survivors_of_a_known_distribution(options: dict[str, float], kept: list[int]) -> None:
    chosen = SamplingParams(**options)  # type: ignore[arg-type]
    assert survivors(LADDER, chosen).tolist() == kept
    exact = probabilities(LADDER, chosen)
    weights = torch.exp(LADDER.double() / chosen.temperature)[kept]
    assert torch.allclose(exact[kept], weights / weights.sum())
    assert float(exact.sum()) == pytest.approx(1.0)


def _cut_one_by_one(logits: Tensor, order: str, params: SamplingParams) -> int:
    """How many of the likeliest tokens are left by cuts made in this order, each on what the last one left."""
    left = torch.softmax(logits.double() / params.temperature, dim=0).sort(descending=True).values.tolist()
    for cut in order.split():
        if cut == "top_k":
            left = left[: params.top_k or None]
        elif cut == "top_p":
            mass, total = list(accumulate(left, initial=0.0)), sum(left)
            left = [weight for weight, before in zip(left, mass, strict=False) if before < params.top_p * total]
        else:
            left = [weight for weight in left if weight >= params.min_p * left[0]]
    return len(left)


def test_top_k_cuts_before_top_p_and_min_p_cuts_last() -> None:
    """Against each cut made on its own, with any set of options; some of these tell every other order apart."""
    others = {" ".join(each) for each in permutations(("top_k", "top_p", "min_p"))} - {"top_k top_p min_p"}
    told = set[str]()
    for seed in range(400):
        draw = random.Random(seed)
        options = SamplingParams(
            temperature=draw.choice((0.6, 1.0, 1.7)),
            top_k=draw.choice((0, 3, 8, 40, 400)),
            top_p=draw.choice((1.0, draw.uniform(0.2, 0.99))),
            min_p=draw.choice((0.0, draw.uniform(0.01, 0.5))),
        )
        logits = _logits(1, draw.choice((40, 300)), 2.0, seed)[0]
        left = survivors(logits, options).shape[0]
        assert left == _cut_one_by_one(logits, "top_k top_p min_p", options), options
        told |= {order for order in others if left != _cut_one_by_one(logits, order, options)}
    assert told == others


def test_probabilities_of_greedy_are_one_hot() -> None:
    assert probabilities(LADDER, SamplingParams(temperature=0)).tolist() == [1.0, 0.0, 0.0, 0.0]
