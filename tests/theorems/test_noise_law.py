"""The two-level noise is a set of independent Exp(1) variables, and the race over it draws softmax exactly."""

from __future__ import annotations

import math

import pytest
import torch
from paceline.speculation.noise import BLOCK, Noise
from paceline.speculation.params import SamplingParams
from paceline.speculation.sampling import Row, probabilities, sample
from scipy import integrate, stats

DRAWS = 20_000


@pytest.mark.parametrize("bounds", [(0.1, 0.5, 0.2, 0.9), (1.0, 0.0, 2.0, 0.3), (0.7, 0.7, 0.7, 0.7)])
def test_least_then_memoryless_rest_is_the_law_of_independent_exponentials(bounds: tuple[float, ...]) -> None:
    """P(E_1 > a_1, …, E_n > a_n) by integrating over the least, which is uniform among the n, equals exp(-Σ a)."""
    n = len(bounds)
    total = 0.0
    for holder in range(n):

        def density(least: float, holder: int = holder) -> float:
            rest = sum(max(0.0, bound - least) for j, bound in enumerate(bounds) if j != holder)
            return n * math.exp(-n * least) * math.exp(-rest) / n

        knots = sorted({bound for bound in bounds if bound > bounds[holder]})
        for low, high in zip([bounds[holder], *knots], [*knots, math.inf], strict=True):
            total += integrate.quad(density, low, high)[0]
    assert total == pytest.approx(math.exp(-sum(bounds)), abs=1e-9)


def _block(positions: int, seed: int = 7) -> torch.Tensor:
    """Noise of the first block at many positions: [positions, BLOCK]."""
    noise = Noise([seed] * positions, [0] * positions, list(range(positions)))
    rows = torch.arange(positions)
    minima, offsets = noise.block_minima(rows, torch.zeros_like(rows))
    return noise.exponentials(rows, torch.zeros_like(rows), minima, offsets)


def test_every_token_of_a_block_is_exponential() -> None:
    block = _block(2000)
    pvalues = [stats.kstest(block[:, token].numpy(), "expon").pvalue for token in range(BLOCK)]
    assert min(pvalues) > 1e-3 / BLOCK


def test_tokens_of_a_block_are_uncorrelated() -> None:
    block = _block(20_000)[:, :16].numpy().T
    ranks = stats.spearmanr(block, axis=1).statistic
    off_diagonal = ranks[~torch.eye(16, dtype=torch.bool).numpy()]
    assert abs(off_diagonal).max() < 5 / math.sqrt(20_000)


OPTIONS = {
    "plain": SamplingParams(seed=3),
    "warm": SamplingParams(seed=3, temperature=0.6),
    "top-k": SamplingParams(seed=3, top_k=4),
    "top-p": SamplingParams(seed=3, top_p=0.8),
    "min-p": SamplingParams(seed=3, min_p=0.2),
    "all": SamplingParams(seed=3, temperature=1.3, top_k=6, top_p=0.9, min_p=0.05),
}


@pytest.mark.parametrize("vocabulary", [5, 300])
@pytest.mark.parametrize("name", OPTIONS)
def test_samples_follow_the_exact_distribution(name: str, vocabulary: int) -> None:
    """Chi-square over one draw per position; the seed is fixed, so this cannot flicker."""
    params = OPTIONS[name]
    logits = 2 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    draws = torch.cat(
        [
            sample(logits.expand(2000, -1), [Row(params, position) for position in range(start, start + 2000)])
            for start in range(0, DRAWS, 2000)
        ]
    )
    expected = probabilities(logits, params) * DRAWS
    counts = torch.bincount(draws, minlength=vocabulary).double()
    assert counts[expected == 0].sum() == 0
    seen = expected >= 5
    observed = torch.cat([counts[seen], counts[~seen].sum()[None]])
    wanted = torch.cat([expected[seen], expected[~seen].sum()[None]])
    keep = wanted > 0
    if keep.sum() > 1:
        assert stats.chisquare(observed[keep].numpy(), wanted[keep].numpy()).pvalue > 1e-4
