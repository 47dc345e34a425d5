"""The fused loss against its formula, in value and in gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from paceline.training.losses import Known, LossWeights, confidence_loss, plain_score, score
from torch import Tensor

ROWS, WIDTH, RANK, VOCAB, LIKELY = 300, 16, 4, 40, 6  # more rows than one chunk holds


def _known(draw: torch.Generator) -> Known:
    likely = torch.stack([torch.randperm(VOCAB, generator=draw)[:LIKELY] for _ in range(ROWS)])
    chances = torch.rand(ROWS, LIKELY + 2, generator=draw).softmax(1)[:, :LIKELY]  # some mass lies elsewhere
    labels = torch.randint(-1, VOCAB, (ROWS,), generator=draw)
    weights = torch.rand(ROWS, generator=draw)
    return Known(labels, likely, chances, weights / weights.sum())


def _sides(draw: torch.Generator) -> list[Tensor]:
    shapes = ((ROWS, WIDTH), (ROWS, RANK), (VOCAB, RANK))
    return [torch.randn(*shape, generator=draw).requires_grad_(True) for shape in shapes]


MIXES = [
    LossWeights(),
    LossWeights(cross_entropy=1.0, total_variation=0.0),
    LossWeights(cross_entropy=0.0, total_variation=1.0),
    LossWeights(cross_entropy=0.0, distillation=1.0, total_variation=0.0),
    LossWeights(cross_entropy=0.3, distillation=0.5, total_variation=0.7),
]


@pytest.mark.parametrize(("weights", "markov"), list(itertools.product(MIXES, (True, False))))
def test_fused_is_the_formula_in_value_and_gradient(weights: LossWeights, markov: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    known, head = _known(draw), torch.randn(VOCAB, WIDTH, generator=draw)
    features, before, w2 = _sides(draw)
    fused = score(features, head, (before, w2) if markov else None, known, weights)
    torch.autograd.backward(3 * fused.loss)
    fused_grads = [each.grad for each in (features, before, w2)]
    for each in (features, before, w2):
        each.grad = None
    logits = features @ head.t() + (before @ w2.t() if markov else 0)
    plain = plain_score(logits, known, weights)
    torch.autograd.backward(3 * plain)
    torch.testing.assert_close(fused.loss, plain)
    for mine, each in zip(fused_grads, (features, before, w2), strict=True):
        if each.grad is None:
            assert mine is None
        else:
            assert mine is not None
            torch.testing.assert_close(mine, each.grad, atol=1e-6, rtol=1e-4)


def test_the_formula_is_cross_entropy_and_total_variation() -> None:
    """With all of the target's mass known, against torch's cross-entropy and half the sum of differences."""
    draw = torch.Generator().manual_seed(1)
    logits, target = torch.randn(9, 12, generator=draw), torch.randn(9, 12, generator=draw).softmax(1)
    labels = torch.randint(0, 12, (9,), generator=draw)
    known = Known(labels, torch.arange(12).expand(9, 12), target, torch.full((9,), 1 / 9))
    variation = 0.5 * (logits.softmax(1) - target).abs().sum(1).mean()
    entropy = torch.nn.functional.cross_entropy(logits, labels)
    soft = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(plain_score(logits, known, LossWeights(0.1, 0.0, 0.9)), 0.1 * entropy + 0.9 * variation)
    torch.testing.assert_close(plain_score(logits, known, LossWeights(0.0, 2.0, 0.0)), 2 * soft)


def test_what_cannot_be_drafted_counts_as_rejected() -> None:
    """A drafter sure of a token that has 0.3 of the target's mass overlaps by 0.3, whatever the rest lies on."""
    known = Known(torch.tensor([-1]), torch.tensor([[2, 0]]), torch.tensor([[0.3, 0.1]]), torch.ones(1))
    features = torch.tensor([[0.0, 0.0, 90.0]])
    found = score(features, torch.eye(3), None, known, LossWeights())
    assert float(found.overlap) == pytest.approx(0.3)
    assert float(found.loss) == pytest.approx(0.9 * 0.7)  # and no cross-entropy, for it has no name
    assert not bool(found.hits)


def test_hits_are_likeliest_drafts_that_came() -> None:
    features = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    known = Known(torch.tensor([1, 1, -1]), torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1), torch.ones(3))
    assert score(features, torch.eye(3), None, known, LossWeights()).hits.tolist() == [True, False, False]


def test_row_weights_decay_and_confidence_learns_the_overlap() -> None:
    torch.testing.assert_close(LossWeights(gamma=2.0).of_rows(3), torch.exp(-torch.tensor([0.0, 0.5, 1.0])))
    overlap = torch.tensor([0.2, 0.9])
    logits = torch.zeros(2, requires_grad=True)
    for _ in range(400):
        (grad,) = torch.autograd.grad(confidence_loss(logits, overlap, torch.ones(2)), logits)
        logits = (logits - 2 * grad).detach().requires_grad_(True)
    torch.testing.assert_close(logits.sigmoid(), overlap, atol=1e-3, rtol=0)
