"""The drafter's network: one position at a time, ragged sessions, training's attention, all the same arithmetic."""

from __future__ import annotations

import pytest
import torch
from paceline.drafters.hidden.attention import ContextCache, attend_blocks
from paceline.drafters.hidden.config import HiddenConfig
from paceline.drafters.hidden.layers import rotate, rotation
from paceline.drafters.hidden.network import HiddenDrafter

from tests.unit.hidden_kit import CONFIG, HIDDEN, VOCAB, dflash, small_drafter


def _cache(drafter: HiddenDrafter, states: torch.Tensor, pieces: list[int]) -> ContextCache:
    cache, at = ContextCache(), 0
    for size in pieces:
        positions = torch.arange(at, at + size)
        cache.append(*drafter.context(drafter.project(states[at : at + size]), positions))
        at += size
    assert at == len(states)
    return cache


def _states(length: int, seed: int) -> torch.Tensor:
    return torch.randn(length, len(CONFIG.target_layer_ids) * HIDDEN, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_context_computed_bit_by_bit_is_the_context_computed_at_once() -> None:
    drafter, states = small_drafter(), _states(300, 0)
    whole, pieces = _cache(drafter, states, [300]), _cache(drafter, states, [1, 7, 250, 42])
    assert len(whole) == len(pieces) == 300
    for layer in range(2):
        for one, other in zip(whole.layer(layer), pieces.layer(layer), strict=True):
            torch.testing.assert_close(one, other)


@torch.no_grad()
def test_sessions_of_a_batch_do_not_see_each_other() -> None:
    drafter = small_drafter()
    lengths = [5, 0, 17, 1]
    caches = [_cache(drafter, _states(n, n), [n]) if n else ContextCache() for n in lengths]
    anchors, positions = torch.tensor([3, 9, 60, 5]), torch.tensor(lengths)
    together = drafter.block(anchors, positions, caches)
    assert together.shape == (4, 4, HIDDEN)
    for index in range(4):
        alone = drafter.block(anchors[index : index + 1], positions[index : index + 1], caches[index : index + 1])
        torch.testing.assert_close(together[index], alone[0])


@torch.no_grad()
@pytest.mark.parametrize("config", [CONFIG, dflash()])
def test_training_reads_what_serving_reads(config: HiddenConfig) -> None:
    """Many anchors over one masked context, against a cache cut at each anchor."""
    drafter, states = small_drafter(config), _states(40, 3)
    tokens = torch.randint(0, VOCAB, (41,), generator=torch.Generator().manual_seed(4))
    places = torch.tensor([0, 1, 13, 39, 40])
    keys, values = drafter.context(drafter.project(states), torch.arange(40))

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend_blocks(q, k, v, (keys[layer], values[layer]), block=config.block_size, lengths=places)

    trained = drafter.rows(tokens[places], places, attend)
    for index, place in enumerate(places.tolist()):
        cache = _cache(drafter, states[:place], [place]) if place else ContextCache()
        served = drafter.block(tokens[place : place + 1], torch.tensor([place]), [cache])
        torch.testing.assert_close(trained[index], served[0], atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_attention_is_softmax_over_context_and_own_rows() -> None:
    """Against a plain formula, with all keys repeated for their query heads."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(6, heads, 8, generator=draw) for heads in (4, 2, 2))
    past_k, past_v = (torch.randn(9, 2, 8, generator=draw) for _ in range(2))
    got = attend_blocks(q, k, v, (past_k, past_v), block=3, lengths=torch.tensor([9, 2]))
    for block, seen in enumerate((9, 2)):
        own = slice(3 * block, 3 * block + 3)
        keys = torch.cat((past_k[:seen], k[own])).repeat_interleave(2, dim=1)
        values = torch.cat((past_v[:seen], v[own])).repeat_interleave(2, dim=1)
        scores = torch.einsum("rhd,shd->hrs", q[own], keys) / 8**0.5
        expected = torch.einsum("hrs,shd->rhd", scores.softmax(-1), values)
        torch.testing.assert_close(got[own], expected)


def test_rotation_depends_on_distance_alone() -> None:
    x = torch.randn(2, 1, 8)
    near = [rotate(x[i : i + 1], rotation(torch.tensor([p]), 8, 1e4, torch.float32)) for i, p in enumerate((3, 10))]
    far = [rotate(x[i : i + 1], rotation(torch.tensor([p]), 8, 1e4, torch.float32)) for i, p in enumerate((103, 110))]
    torch.testing.assert_close((near[0] * near[1]).sum(), (far[0] * far[1]).sum(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_greedy_drafts_follow_the_markov_head_from_left_to_right() -> None:
    drafter = small_drafter()
    hidden, anchors = torch.randn(3, 4, HIDDEN), torch.tensor([1, 2, 3])
    drafts, estimates = drafter.greedy(hidden, anchors)
    assert estimates is not None
    markov, confidence = drafter.markov_head, drafter.confidence_head
    assert markov is not None
    assert confidence is not None
    for session in range(3):
        previous = int(anchors[session])
        for step in range(4):
            row, before = hidden[session, step], markov.markov_w1.weight[previous]
            bias = markov.markov_w2.weight @ before
            estimate = (confidence.proj.weight[0] @ torch.cat((row, before)) + confidence.proj.bias[0]).sigmoid()
            torch.testing.assert_close(estimates[session, step], estimate)
            previous = int(drafter.target_ids[(drafter.lm_head @ row + bias).argmax()])
            assert previous == int(drafts[session, step])
            assert bool(drafter.vocabulary.membership()[previous])


@torch.no_grad()
def test_the_markov_head_changes_drafts() -> None:
    drafter, hidden = small_drafter(), torch.randn(8, 4, HIDDEN)
    one, _ = drafter.greedy(hidden, torch.zeros(8, dtype=torch.long))
    other, _ = drafter.greedy(hidden, torch.full((8,), 7))
    assert bool((one != other).any())
