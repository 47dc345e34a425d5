"""Rejection mode's draws against slow, obvious ones; the law of what they commit; and relaxed acceptance."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.runtime import wire_sampling
from paceline.speculation.drawing import Drawn, draw
from paceline.speculation.messages import MAX_SUPPORT, Draft, SparseDistribution
from paceline.speculation.noise import STREAM_ACCEPT, STREAM_DRAFT, STREAM_RECOVERY, STREAM_TARGET, Noise
from paceline.speculation.params import SamplingParams, VerificationMode
from paceline.speculation.rejection import normalised, serialised
from paceline.speculation.sampling import NOTHING, Row, probabilities, sample
from paceline.speculation.shaping import shaping_of
from scipy import stats
from torch import Tensor

REJECTION = VerificationMode.REJECTION
DRAWS = 20_000

params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 3, 100]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 2**64 - 1),
    verification_mode=st.just(REJECTION),
)
rows = st.builds(Row, params, st.integers(0, 2**31), st.integers(0, 100))


def _logits(count: int, vocabulary: int, seed: int) -> Tensor:
    return 2 * torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(seed))


def _noise(row: Row, stream: int) -> Noise:
    return Noise([row.params.seed], [row.choice], [row.position], stream=stream)


def _race(weights: dict[int, float], row: Row, stream: int) -> int:
    """The winner of the race, every runner timed."""
    tokens = torch.tensor(sorted(token for token, weight in weights.items() if weight > 0))
    times = _noise(row, stream).at(torch.zeros_like(tokens), tokens)
    best: int = min(tokens.tolist(), key=lambda token: float(times[tokens == token]) / weights[token])
    return best


def _slow_judge(logits: Tensor, row: Row, draft: Draft) -> int:
    assert draft.distribution is not None
    p = probabilities(logits, row.params).tolist()
    q = dict(zip(draft.distribution.ids, normalised(draft.distribution), strict=True))
    chance = p[draft.token] if draft.token < len(p) else 0.0
    if float(_noise(row, STREAM_ACCEPT).uniforms()) * q[draft.token] < chance:
        return draft.token
    return _race({token: weight - q.get(token, 0.0) for token, weight in enumerate(p)}, row, STREAM_RECOVERY)


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, min_size=1, max_size=6), st.sampled_from([5, 300]), st.integers(0, 5))
def test_drafts_and_decisions_are_the_slow_ones(described: list[Row], vocabulary: int, seed: int) -> None:
    count = len(described)
    proposed = draw(_logits(count, vocabulary, seed), [replace(row, proposes=True) for row in described])
    drafts = []
    for row, token, sent in zip(described, proposed.tokens, proposed.distributions, strict=True):
        assert sent is not None
        assert token == _race(dict(zip(sent.ids, sent.probabilities, strict=True)), row, STREAM_DRAFT)
        drafts.append(Draft(token, sent))
    logits = _logits(count, vocabulary, seed + 100)
    judged = draw(logits, [replace(row, draft=draft) for row, draft in zip(described, drafts, strict=True)])
    cases = zip(logits, described, drafts, strict=True)
    assert judged.tokens == [_slow_judge(*case) for case in cases]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Sampled, drafted and judged rows in one step, shaped or not, together and alone."""
    logits = _logits(40, 2000, 1)
    described = []
    for i in range(40):
        top_p, penalty = 0.9 if i % 2 else 1.0, 1.0 if i % 5 == 0 else 0.0
        options = SamplingParams(seed=i, top_p=top_p, presence_penalty=penalty, verification_mode=REJECTION)
        sent = SparseDistribution((7, 11 + i, 5000), (0.5, 0.25, 0.25))
        draft = Draft(sent.ids[i % 3], sent) if i % 4 == 0 else None
        shaping = shaping_of(options, [1, 2, 7], prompt_len=1, vocab_size=2000, eos=())
        described.append(Row(options, i, 0, shaping.row() if shaping else None, draft, i % 4 == 1))
    together = draw(logits, described)
    alone = [draw(logits[i : i + 1], [row]) for i, row in enumerate(described)]
    assert together.tokens == [each.tokens[0] for each in alone]
    assert together.distributions == [each.distributions[0] for each in alone]


@settings(deadline=None, max_examples=50)
@given(params, st.sampled_from([3, 64, 500]), st.integers(0, 9))
def test_what_is_drawn_from_is_what_is_sent(chosen: SamplingParams, vocabulary: int, seed: int) -> None:
    logits = _logits(1, vocabulary, seed)
    row = Row(chosen, 3, proposes=True)
    drawn = draw(logits, [row])
    (sent,) = drawn.distributions
    assert sent is not None
    assert wire_sampling.from_distributions(wire_sampling.to_distributions([sent]), drawn.tokens) == (sent,)
    assert len(sent.ids) <= MAX_SUPPORT
    exact = probabilities(logits[0], chosen)
    kept = exact[list(sent.ids)]
    assert bool((kept > 0).all())
    assert torch.allclose(torch.tensor(normalised(sent), dtype=torch.float64), kept / kept.sum(), atol=1e-6)


def test_a_wide_distribution_is_cut_to_its_likeliest_tokens() -> None:
    logits = torch.arange(500.0)[None] / 100
    sent = serialised(logits[0], Row(SamplingParams(), 0))
    assert sent.ids == tuple(range(499, 499 - MAX_SUPPORT, -1))
    cold = serialised(logits[0], Row(SamplingParams(temperature=0.001), 0))
    assert cold.ids[0] == 499
    assert min(cold.probabilities) > 0


def test_the_streams_are_disjoint() -> None:
    streams = (STREAM_TARGET, STREAM_DRAFT, STREAM_ACCEPT, STREAM_RECOVERY)
    tokens = torch.arange(1000)
    drawn = [Noise([9], [0], [4], stream=stream).at(torch.zeros_like(tokens), tokens) for stream in streams]
    seen = torch.cat(drawn)
    assert len(set(seen.tolist())) == len(seen)
    assert abs(torch.corrcoef(torch.stack(drawn)) - torch.eye(4)).max() < 5 / math.sqrt(1000)


OPTIONS = {
    "plain": SamplingParams(seed=3, verification_mode=REJECTION),
    "cut": SamplingParams(seed=3, temperature=1.3, top_k=6, top_p=0.9, min_p=0.05, verification_mode=REJECTION),
}


@pytest.mark.parametrize("vocabulary", [5, 300])
@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_committed_follows_the_targets_distribution(name: str, vocabulary: int) -> None:
    """Chi-square over one drafted and judged token per position; the seed is fixed, so this cannot flicker."""
    chosen = OPTIONS[name]
    target, drafter = _logits(1, vocabulary, 1)[0], _logits(1, vocabulary, 2)[0] + _logits(1, vocabulary, 1)[0]
    tokens: list[int] = []
    accepted = 0
    for start in range(0, DRAWS, 2000):
        positions = range(start, start + 2000)
        proposed = draw(drafter.expand(2000, -1), [Row(chosen, at, proposes=True) for at in positions])
        drafts = [Draft(*each) for each in zip(proposed.tokens, proposed.distributions, strict=True)]
        judged = draw(
            target.expand(2000, -1), [Row(chosen, at, draft=draft) for at, draft in zip(positions, drafts, strict=True)]
        )
        tokens += judged.tokens
        accepted += sum(a == b for a, b in zip(judged.tokens, proposed.tokens, strict=True))
    p, sent = probabilities(target, chosen), serialised(drafter, Row(chosen, 0))
    q = torch.zeros_like(p).index_add_(0, torch.tensor(sent.ids), torch.tensor(normalised(sent), dtype=torch.float64))
    expected = float(torch.minimum(p, q).sum())  # 1 - TV
    assert stats.binomtest(accepted, DRAWS, expected).pvalue > 1e-4
    counts = torch.bincount(torch.tensor(tokens), minlength=vocabulary).double()
    wanted = p * DRAWS
    assert counts[wanted == 0].sum() == 0
    often = wanted >= 5
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    wanted = torch.cat([wanted[often], wanted[~often].sum()[None]])
    keep = wanted > 0
    assert stats.chisquare(observed[keep].numpy(), wanted[keep].numpy()).pvalue > 1e-4


def test_a_greedy_row_is_the_argmax_whatever_was_drafted() -> None:
    greedy = SamplingParams(temperature=0, verification_mode=REJECTION)
    sent = SparseDistribution((1,), (1.0,))
    drawn = draw(
        torch.tensor([[0.0, 1.0, 2.0]] * 2), [Row(greedy, 0, draft=Draft(1, sent)), Row(greedy, 0, proposes=True)]
    )
    assert drawn == Drawn.plain([2, 2])


def test_a_row_without_a_draft_is_the_targets_own_sample() -> None:
    logits = _logits(50, 40, 4)
    ours = [Row(SamplingParams(seed=5, verification_mode=REJECTION), at) for at in range(50)]
    assert draw(logits, ours).tokens == sample(logits, [Row(SamplingParams(seed=5), at) for at in range(50)]).tolist()


def test_where_the_options_leave_nothing_nothing_is_drafted_or_accepted() -> None:
    options = SamplingParams(bad_words=((0,), (1,)), verification_mode=REJECTION)
    shaping = shaping_of(options, [0], prompt_len=1, vocab_size=2, eos=())
    assert shaping is not None
    sent = SparseDistribution((1,), (1.0,))
    dead = [Row(options, 0, 0, shaping.row(), Draft(1, sent)), Row(options, 0, 0, shaping.row(), proposes=True)]
    assert draw(torch.zeros(2, 2), dead).tokens == [NOTHING, NOTHING]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_broken_logits_are_refused(poison: float) -> None:
    logits = torch.zeros(1, 300)
    logits[0, 17] = poison
    for row in (
        Row(SamplingParams(), 0, proposes=True),
        Row(SamplingParams(), 0, draft=Draft(1, SparseDistribution((1,), (1.0,)))),
        Row(SamplingParams(relaxed_acceptance=0.5), 0, draft=Draft(1)),
    ):
        with pytest.raises(FloatingPointError, match="model is broken"):
            draw(logits, [row])


LADDER = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        ({"relaxed_acceptance": 1.0}, {0}),
        ({"relaxed_acceptance": 0.74}, {0, 1}),
        ({"relaxed_acceptance": 0.24}, {0, 1, 2, 3}),
        ({"relaxed_acceptance": 0.01, "top_k": 2}, {0, 1}),
        ({"relaxed_acceptance": 0.5, "temperature": 0.5}, {0, 1}),
        ({"relaxed_acceptance": 0.49, "temperature": 0}, {0, 1, 2}),
    ],
)
def test_relaxed_acceptance_keeps_drafts_that_are_likely_enough(options: dict[str, float], accepted: set[int]) -> None:
    chosen = SamplingParams(seed=2, **options)  # type: ignore[arg-type]
    positions = range(100)
    own = sample(LADDER.expand(100, -1), [Row(chosen, at) for at in positions]).tolist()
    for draft in (0, 1, 2, 3, 4):  # 4 is no token of the target
        drawn = draw(LADDER.expand(100, -1), [Row(chosen, at, draft=Draft(draft)) for at in positions])
        if draft in accepted:
            assert drawn.tokens == [draft] * 100
            assert drawn.relaxed == [token != draft for token in own]
        else:
            assert drawn == Drawn.plain(own)
