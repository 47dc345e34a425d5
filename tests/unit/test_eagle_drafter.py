"""The EAGLE-3 drafter as it is served: rows of the target's features, then of its own, against computing all anew."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from paceline.drafters.hidden import checkpoint
from paceline.drafters.hidden.drafter import ContextDrafter, Served
from paceline.drafters.hidden.eagle.backend import EagleBackend
from paceline.drafters.hidden.eagle.config import EagleConfig
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.eagle.products import put_on_kernels
from paceline.drafters.hidden.loading import read_projector
from paceline.drafters.interface import Ask, DraftSession, FeatureDrafter, Features
from paceline.drafters.shaping import DraftShaping
from paceline.engine.projection import Projection
from paceline.speculation.messages import SessionOpen
from paceline.speculation.params import SamplingParams, VerificationMode
from paceline.speculation.sampling import Row, sample
from torch import Tensor, nn

from tests.unit.eagle_kit import CONFIG, small_eagle
from tests.unit.hidden_kit import HIDDEN, VOCAB

GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
K = CONFIG.draft_tokens
FEATURES = torch.randn(90, HIDDEN, generator=torch.Generator().manual_seed(0)).bfloat16().float()
TOKENS = torch.randint(3, VOCAB, (91,), generator=torch.Generator().manual_seed(3)).tolist()
VARIANTS = [
    CONFIG,
    dataclasses.replace(CONFIG, norm_before_residual=True, norm_output=True),
    dataclasses.replace(CONFIG, model_type="qwen3", draft_vocab_size=VOCAB),
]


class Counting(EagleDrafter):
    """Counts the rows it computes for their keys and values alone."""

    counted = 0

    def keys_values(self, tokens: Tensor, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        self.counted += len(tokens)
        return super().keys_values(tokens, hidden, positions)


def drafter_of(network: EagleDrafter, tokens: int = 1024) -> ContextDrafter:
    served = Served(network, EagleBackend(network, tokens), projector="p", model_id="tiny-eagle3")
    return ContextDrafter(served, DraftShaping(vocab_size=VOCAB, eos=(2,)), clock=lambda: 0.0)


def session(name: str = "a", *, known: int = len(TOKENS), sampling: SamplingParams = GREEDY) -> DraftSession:
    return DraftSession.opened(SessionOpen(name, 1, "r", tuple(TOKENS[:known]), 10, sampling), "eagle3")


def features(start: int, end: int, name: str = "a") -> Features:
    data = FEATURES[start:end].bfloat16().view(torch.uint8).numpy().tobytes()
    return Features(name, start, end - start, data)


def causal(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    del layer
    group = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", queries, keys) * queries.shape[-1] ** -0.5
    scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)


def anew(network: EagleDrafter, base_len: int, drafts: Sequence[int]) -> Tensor:
    """Logits over the target's vocabulary of the draft after these, every row computed anew for each of them."""
    hidden = FEATURES[: base_len - 1]
    out = hidden
    for step in range(len(drafts) + 1):
        tokens = torch.tensor([*TOKENS[1:base_len], *drafts[:step]])
        out = network.rows(tokens, hidden, torch.arange(len(tokens)), causal)
        hidden = torch.cat((hidden, out[-1:]))
    full = torch.full((VOCAB,), -torch.inf)
    full[network.target_ids] = network.head(out[-1])
    return full


def greedy(network: EagleDrafter, base_len: int, count: int) -> tuple[int, ...]:
    drafts: list[int] = []
    while len(drafts) < count:
        drafts.append(int(anew(network, base_len, drafts).argmax()))
    return tuple(drafts)


@pytest.mark.parametrize("config", VARIANTS)
def test_a_row_depends_on_itself_and_those_before(config: EagleConfig) -> None:
    network = small_eagle(config)
    states = torch.randn(12, len(config.target_layer_ids) * HIDDEN)
    hidden = network.project(states)
    tokens, positions = torch.tensor(TOKENS[1:13]), torch.arange(12)
    rows = network.rows(tokens, hidden, positions, causal)
    assert hidden.shape == rows.shape == (12, HIDDEN)
    assert network.head(rows).shape == (12, config.draft_vocab_size)
    keys, values = network.keys_values(tokens, hidden, positions)
    assert keys.shape == values.shape == (12, config.num_key_value_heads, config.head_dim)
    tokens[7] += 1
    changed = (network.rows(tokens, hidden, positions, causal) != rows).any(1)
    assert changed.tolist() == [False] * 7 + [True] * 5
    other = network.rows(tokens, hidden + torch.arange(12)[:, None].eq(4), positions, causal)
    assert (other != rows).any(1).tolist() == [False] * 4 + [True] * 8


@pytest.mark.parametrize("config", VARIANTS)
def test_after_any_acceptance_drafts_are_those_of_computing_all_anew(config: EagleConfig) -> None:
    network = small_eagle(config)
    drafter = drafter_of(network)
    assert isinstance(drafter, FeatureDrafter)
    assert (drafter.name, drafter.needs_features) == ("eagle3", True)
    opened = session(known=12)
    drafter.open(opened)
    at, seen = 0, set()
    for base_len in (12, 13, 17, 18, 40, 45):  # rounds that committed 1, 4, 1, 22 and 5
        drafter.feed([features(at, base_len - 1)])  # of tokens, some of which are not known yet
        at = base_len - 1
        opened.tokens.extend(TOKENS[len(opened.tokens) : base_len])
        [proposal] = drafter.propose([Ask("a", base_len, 32)])
        assert proposal.tokens == greedy(network, base_len, K)
        assert (proposal.drafter, proposal.proposer_model_id) == ("eagle3", "tiny-eagle3")
        seen.add(proposal.tokens)
    assert drafter.propose([Ask("a", 45, 32)])[0].tokens == proposal.tokens  # asked again
    assert len(seen) > 3


def test_nothing_is_computed_twice() -> None:
    like = small_eagle()
    network = Counting(CONFIG, like.vocabulary, like.embed_tokens.weight)
    network.load_state_dict(like.state_dict())
    network.requires_grad_(False)
    drafter = drafter_of(network)
    opened = session(known=20)
    drafter.open(opened)
    network.counted, at = 0, 0
    counts = []
    for base_len in (20, 23, 24, 30):
        drafter.feed(
            [features(at, at + 2), features(at + 2, base_len - 1)] if at == 0 else [features(at, base_len - 1)]
        )
        at = base_len - 1
        fed = network.counted
        opened.tokens.extend(TOKENS[len(opened.tokens) : base_len])
        drafter.propose([Ask("a", base_len, 3)])
        counts.append((fed, network.counted))
    # By an ask, all rows but its own last are there. A prompt's tokens are known, so its rows need not wait for it;
    # of what a round committed, one row is computed as drafting's first step, and the others' tokens come with the ask.
    assert counts == [(18, 18), (18, 20), (20, 20), (20, 25)]


def test_sessions_are_drafted_for_together_as_alone() -> None:
    network = small_eagle()
    drafter = drafter_of(network)
    lengths = {"a": (30, 5), "b": (12, 2), "c": (61, 4)}
    for name in lengths:
        drafter.open(session(name))
    drafter.feed([features(0, length - 1, name) for name, (length, _) in lengths.items()])
    proposals = drafter.propose([Ask(name, length, count) for name, (length, count) in lengths.items()])
    for proposal, (length, count) in zip(proposals, lengths.values(), strict=True):
        assert proposal.tokens == greedy(network, length, count)


def test_without_features_there_are_no_drafts() -> None:
    drafter = drafter_of(small_eagle())
    drafter.open(session())
    assert drafter.propose([Ask("a", 1, 4)])[0].tokens == ()  # complete, but there is no row to begin with
    drafter.feed([features(0, 20)])
    assert drafter.propose([Ask("a", 30, 4)])[0].tokens == ()
    drafter.feed([features(20, 29)])
    assert drafter.propose([Ask("a", 30, 4)])[0].tokens


def test_temperature_draws_with_the_noise_of_the_target_over_its_token_ids() -> None:
    network = small_eagle()
    sampling = dataclasses.replace(GREEDY, temperature=0.9, seed=1234)
    seen = set()
    for choice in range(6):
        drafter = drafter_of(network)
        opened = session(sampling=sampling)
        opened.choice = choice
        drafter.open(opened)
        drafter.feed([features(0, 29)])
        [proposal] = drafter.propose([Ask("a", 30, 3)])
        for step, token in enumerate(proposal.tokens):
            logits = anew(network, 30, proposal.tokens[:step])
            assert token == int(sample(logits[None], [Row(sampling, 20 + step, choice)])[0])
        assert not proposal.distributions
        seen.add(proposal.tokens)
    assert len(seen) > 1


def test_in_rejection_mode_each_draft_comes_with_what_it_was_drawn_from() -> None:
    network = small_eagle()
    drafter = drafter_of(network)
    mode = VerificationMode.REJECTION
    drafter.open(session(sampling=SamplingParams(temperature=1.0, max_tokens=64, seed=7, verification_mode=mode)))
    drafter.feed([features(0, 29)])
    [proposal] = drafter.propose([Ask("a", 30, K)])
    assert len(proposal.distributions) == len(proposal.tokens) == K
    for step, (token, sent) in enumerate(zip(proposal.tokens, proposal.distributions, strict=True)):
        assert token in sent.ids
        p = anew(network, 30, proposal.tokens[:step]).double().softmax(0)
        assert math.fsum(sent.probabilities) == pytest.approx(1, abs=1e-5)
        for each, probability in zip(sent.ids, sent.probabilities, strict=True):
            assert probability == pytest.approx(float(p[each]), rel=1e-3)


def test_on_the_engines_products_it_drafts_alike() -> None:
    proposals = []
    for native in (False, True):
        network = small_eagle().to(torch.bfloat16)
        if native and put_on_kernels(network) is None:
            pytest.skip("no native products on this machine")
        drafter = drafter_of(network)
        for name in "ab":
            drafter.open(session(name))
        drafter.feed([features(0, 40), features(0, 20, "b")])
        proposals.append([each.tokens for each in drafter.propose([Ask("a", 41, 2), Ask("b", 21, K)])])
    assert proposals[0] == proposals[1]


@pytest.mark.parametrize("change", [{}, {"norm_before_fc": True}, {"fc_norm": True}])
def test_the_targets_projector_computes_its_features(tmp_path: Path, change: dict[str, bool]) -> None:
    network = small_eagle(dataclasses.replace(CONFIG, **change))  # type: ignore[arg-type]  # flags
    checkpoint.save(tmp_path, network, dtype=torch.float32)
    projector = read_projector(tmp_path)
    assert projector.layers == CONFIG.target_layer_ids

    def make(weight: Tensor, bias: Tensor | None) -> nn.Module:
        del bias
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False).requires_grad_(False)
        linear.weight.copy_(weight)
        return linear

    states = torch.randn(7, 3 * HIDDEN)
    features = Projection(projector, make, None, states)(states)
    torch.testing.assert_close(features, network.project(states))
