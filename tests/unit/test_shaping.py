"""Every option that changes logits, against an obvious one-token-at-a-time reference; verify lengths; edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paceline.speculation.params import SamplingParams
from paceline.speculation.sampling import NOTHING, Row, probabilities, sample, shaped
from paceline.speculation.shaping import Shaping, shaping_of
from torch import Tensor

from tests.unit.shaping_reference import shaped_slowly

VOCAB = 24
EOS = 23


def _logits(seed: int, vocabulary: int = VOCAB) -> Tensor:
    return 3 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed))


tokens = st.integers(0, VOCAB - 1)
options = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.5, 1.3, 2.0]),
        "presence_penalty": st.sampled_from([-1.0, 0.7]),
        "frequency_penalty": st.sampled_from([-0.5, 0.3]),
        "logit_bias": st.dictionaries(tokens, st.floats(-100, 100), max_size=4).map(lambda map_: tuple(map_.items())),
        "min_tokens": st.integers(0, 8),
        "bad_words": st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple),
        "stop_token_ids": st.lists(tokens, max_size=2).map(tuple),
        "ignore_eos": st.booleans(),
    },
)
# Few different tokens, so that they repeat and bad words match.
texts = st.lists(st.integers(0, 5), max_size=9)


@settings(max_examples=200, deadline=None)
@given(options, st.lists(st.integers(0, 5), min_size=1, max_size=6), texts, st.integers(0, 9), st.integers(0, 99))
@example({"presence_penalty": 0.7, "frequency_penalty": -0.5}, [0], [0], 0, 13)  # 0.7 must not be rounded by itself
def test_every_row_is_the_reference_however_its_tokens_came(
    given_: dict[str, Any], prompt: list[int], output: list[int], cut: int, seed: int
) -> None:
    """Known at the start, committed later, or drafts of a row: the same bits."""
    params = SamplingParams(max_tokens=64, **given_)
    logits = _logits(seed)
    expected = shaped_slowly(logits.tolist(), params, prompt, output, eos=EOS)
    cut = min(cut, len(output))
    shaping = shaping_of(params, prompt + output[:cut], prompt_len=len(prompt), vocab_size=VOCAB, eos=[EOS])
    if shaping is None:
        assert np.array_equal(expected, logits.numpy())
        return
    drafted = shaping.row(output[cut:]).apply(logits)
    assert np.array_equal(drafted.numpy(), expected)
    shaping.commit(output[cut:])
    assert torch.equal(shaping.row().apply(logits), drafted)
    assert torch.equal(logits, _logits(seed)), "the model's logits are left as they are"


def test_rows_are_one_for_each_prefix_of_the_drafts() -> None:
    shaping = shaping_of(SamplingParams(presence_penalty=1.0), [1, 2], prompt_len=2, vocab_size=VOCAB, eos=[EOS])
    assert shaping is not None
    rows = [row.apply(torch.zeros(VOCAB)) for row in shaping.rows([5, 6, 5])]
    assert [sorted(torch.nonzero(row).flatten().tolist()) for row in rows] == [[], [5], [5, 6], [5, 6]]


def test_without_such_options_there_is_nothing_to_pay() -> None:
    plain = SamplingParams(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, stop=("x",), stop_token_ids=(4,))
    assert shaping_of(plain, [1], prompt_len=1, vocab_size=VOCAB, eos=[EOS]) is None


def test_the_prompt_counts_for_repetition_and_bad_words_alone() -> None:
    given_ = {"repetition_penalty": 2.0, "presence_penalty": 1.0, "frequency_penalty": 1.0, "bad_words": ((3, 4),)}
    shaping = shaping_of(SamplingParams(**given_), [2, 3], prompt_len=2, vocab_size=VOCAB, eos=[EOS])  # type: ignore[arg-type]
    assert shaping is not None
    out = shaping.row().apply(torch.ones(VOCAB)).tolist()
    assert (out[2], out[4], out[5]) == (0.5, -math.inf, 1.0)


def test_ids_outside_the_vocabulary_concern_nobody() -> None:
    """A drafter's vocabulary may be narrower than its target's."""
    params = SamplingParams(
        logit_bias=((90, 5.0),), bad_words=((90,), (1, 90)), stop_token_ids=(90,), min_tokens=3, repetition_penalty=1.5
    )
    shaping = shaping_of(params, [1, 90], prompt_len=1, vocab_size=VOCAB, eos=[EOS])
    assert shaping is not None
    out = shaping.row((90,)).apply(torch.ones(VOCAB))
    assert out[1] == pytest.approx(1 / 1.5)
    assert int(torch.isinf(out).sum()) == 1  # EOS


@dataclass
class Alternating:
    """A grammar of 1 2 1 2 …"""

    committed: list[int] = field(default_factory=list)

    def allowed(self, following: Sequence[int]) -> Tensor | None:
        text = [*self.committed, *following]
        if any(token != 1 + place % 2 for place, token in enumerate(text)):
            return None
        return torch.arange(VOCAB) == 1 + len(text) % 2

    def fitting(self, drafts: Sequence[int]) -> int:
        return sum(self.allowed(drafts[: count + 1]) is not None for count in range(len(drafts)))

    def forced(self, following: Sequence[int]) -> tuple[int, ...]:
        return (1 + (len(self.committed) + len(following)) % 2,)

    def commit(self, tokens: Sequence[int]) -> None:
        self.committed += tokens


def test_a_grammar_masks_and_is_told_what_was_committed() -> None:
    params = SamplingParams()
    grammar = Alternating()
    shaping = shaping_of(params, [9], prompt_len=1, vocab_size=VOCAB, eos=[EOS], grammar=grammar)
    assert shaping is not None
    rows = [Row(params, i, 0, row) for i, row in enumerate(shaping.rows([1, 2, 7, 7]))]
    assert sample(_logits(1).expand(5, -1), rows).tolist()[:3] == [1, 2, 1]
    shaping.commit([1])
    assert sample(_logits(1)[None], [Row(params, 1, 0, shaping.row())]).tolist() == [2]
    assert grammar.committed == [1]


def test_contradicting_options_leave_nothing_and_the_neighbours_alone() -> None:
    """min_tokens forbids the only token a grammar allows."""
    params = SamplingParams(min_tokens=1, stop_token_ids=(1,), temperature=0)
    shaping = shaping_of(params, [9], prompt_len=1, vocab_size=VOCAB, eos=[EOS], grammar=Alternating())
    assert shaping is not None
    logits = torch.stack([_logits(i) for i in range(3)])
    free = Row(SamplingParams(seed=5), 0)
    drawn = sample(logits, [free, Row(params, 0, 0, shaping.row()), free]).tolist()
    assert drawn[1] == NOTHING
    assert [drawn[0], drawn[2]] == sample(logits[[0, 2]], [free, free]).tolist()


def test_broken_logits_are_not_taken_for_a_dead_end() -> None:
    shaping = shaping_of(SamplingParams(min_tokens=1), [9], prompt_len=1, vocab_size=VOCAB, eos=[EOS])
    assert shaping is not None
    with pytest.raises(FloatingPointError, match="model is broken"):
        sample(torch.full((1, VOCAB), -math.inf), [Row(SamplingParams(), 0, 0, shaping.row())])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cuts", [{}, {"top_p": 0.8}, {"temperature": 0.0}])
def test_a_shaped_row_does_not_depend_on_its_neighbours(dtype: torch.dtype, cuts: dict[str, float]) -> None:
    wide = 5000
    logits = torch.stack([_logits(i, wide) for i in range(12)]).to(dtype)
    described = []
    for i in range(12):
        params = SamplingParams(seed=i, repetition_penalty=1.4, frequency_penalty=0.3, **cuts)  # type: ignore[arg-type]
        shaping = Shaping(params, range(i, 2000 + i), prompt_len=1000, vocab_size=wide, ends=())
        described.append(Row(params, i, 0, shaping.row(range(40 * i)) if i % 3 else None))
    together = sample(logits, described).tolist()
    assert together == [int(sample(logits[i : i + 1], [row])[0]) for i, row in enumerate(described)]


def test_sampled_tokens_follow_the_shaped_distribution() -> None:
    """Frequencies over positions against ``probabilities``; 5 sigma."""
    params = SamplingParams(seed=3, logit_bias=((2, 1.0),), bad_words=((0,),), repetition_penalty=1.7, top_k=5)
    shaping = shaping_of(params, [3], prompt_len=1, vocab_size=8, eos=[7])
    assert shaping is not None
    draws, logits = 20_000, _logits(4, 8)
    rows = [Row(params, position, 0, shaping.row()) for position in range(draws)]
    counts = torch.bincount(sample(logits.expand(draws, -1), rows), minlength=8)
    exact = probabilities(shaped(logits, rows[0]), params)
    assert exact[0] == 0
    sigma = torch.sqrt(draws * exact * (1 - exact))
    assert bool(((counts - draws * exact).abs() <= 5 * sigma).all()), (counts, draws * exact)
