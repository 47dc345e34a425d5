"""The hidden-state drafter as it is served: contexts from features, blocks, tokens drawn as the target draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from paceline.drafters.hidden.attention import ContextCache
from paceline.drafters.hidden.backend import Backend, BlockAsk, Piece
from paceline.drafters.hidden.config import HiddenConfig
from paceline.drafters.hidden.drafter import ContextDrafter, Served
from paceline.drafters.hidden.native_backend import NativeBackend, kernels_for
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.drafters.hidden.torch_backend import TorchBackend
from paceline.drafters.interface import Ask, DraftSession, FeatureDrafter, Features
from paceline.drafters.shaping import DraftShaping
from paceline.speculation.messages import Proposal, SessionOpen
from paceline.speculation.params import SamplingParams, VerificationMode
from paceline.speculation.sampling import Row, sample
from torch import Tensor

from tests.unit.hidden_kit import CONFIG, HIDDEN, VOCAB, dflash, small_drafter

GREEDY = SamplingParams(temperature=0.0, max_tokens=64)
EOS = 2
K = CONFIG.draft_tokens


def noise(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))


STATES = noise(90).bfloat16()  # projected already
TOKENS = torch.randint(3, VOCAB, (91,), generator=torch.Generator().manual_seed(3)).tolist()


def bf16_network(config: HiddenConfig = CONFIG) -> HiddenDrafter:
    return small_drafter(config).to(torch.bfloat16).requires_grad_(False)


def backends(network: HiddenDrafter, tokens: int = 512) -> list[Backend]:
    kernels = kernels_for(network)
    native = [NativeBackend(network, kernels, tokens)] if kernels is not None else []
    return [TorchBackend(network, tokens), *native]


def native_or_skip(network: HiddenDrafter, tokens: int = 512) -> NativeBackend:
    kernels = kernels_for(network)
    if kernels is None:
        pytest.skip("no native products on this machine")
    return NativeBackend(network, kernels, tokens)


def drafter_of(backend: Backend, network: HiddenDrafter) -> ContextDrafter:
    served = Served(network, backend, projector="p", model_id="tiny-dspark")
    return ContextDrafter(served, DraftShaping(vocab_size=VOCAB, eos=(EOS,)), clock=lambda: 0.0)


def session(
    name: str = "a", *, prompt_len: int = 10, tokens: Sequence[int] = TOKENS, sampling: SamplingParams = GREEDY
) -> DraftSession:
    opening = SessionOpen(name, 1, "r", tuple(tokens), prompt_len, sampling)
    return DraftSession.opened(opening, "dspark")


def features(start: int, end: int, name: str = "a", states: Tensor = STATES) -> Features:
    data = states[start:end].contiguous().view(torch.uint8).numpy().tobytes()
    return Features(name, start, end - start, data)


def test_kernels_compute_what_the_network_does_whatever_the_batch() -> None:
    network = bf16_network()
    native, plain = native_or_skip(network), TorchBackend(network, 512)
    asks = [BlockAsk("a", 7, 70), BlockAsk("b", 9, 3), BlockAsk("c", 11, 0)]
    for backend in (native, plain):
        assert all(backend.reserve(name, 96) for name in "abc")
        backend.append([Piece("a", 0, STATES[:50]), Piece("b", 0, STATES[50:53])])
        backend.append([Piece("a", 50, STATES[50:70])])
    ours, theirs = native.block(asks), plain.block(asks)
    assert ours.shape == (K, 3, HIDDEN)
    off = (ours.float() - theirs.float()).square().mean().sqrt() / theirs.float().square().mean().sqrt()
    assert off < 0.02, off
    for place, ask in enumerate(asks):  # after blocks of others, and after its own was written behind its context
        assert torch.equal(native.block([ask])[:, 0], ours[:, place])
    previous = torch.tensor([4, 5, 6])
    base = native.base(ours)
    close = {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(base, plain.base(ours), **close)  # type: ignore[arg-type]
    torch.testing.assert_close(native.biased(base[0], previous), plain.biased(base[0], previous), **close)  # type: ignore[arg-type]


def test_contexts_have_the_bits_of_one_go_however_they_grew() -> None:
    network = bf16_network()
    native = native_or_skip(network)
    assert native.reserve("whole", 96)
    assert native.reserve("grown", 96)
    native.append([Piece("whole", 0, STATES[:80])])
    at = 0
    for count in (17, 1, 3, 40, 1, 18):
        if at:
            native.block([BlockAsk("grown", 5, at)])  # whose rows the next features overwrite
        native.append([Piece("grown", at, STATES[at : at + count])])
        at += count
    assert torch.equal(native.block([BlockAsk("grown", 5, 80)]), native.block([BlockAsk("whole", 5, 80)]))


@pytest.mark.parametrize("config", [CONFIG, dflash(), dflash(sample_from_anchor=True)])
def test_greedy_drafts_are_the_networks(config: HiddenConfig) -> None:
    network = small_drafter(config).requires_grad_(False)
    drafter = drafter_of(TorchBackend(network, 512), network)
    assert isinstance(drafter, FeatureDrafter)
    assert (drafter.name, drafter.needs_features) == (config.drafter, True)
    drafter.open(session())
    at = 0
    for base_len in (12, 13, 17, 40, 60):  # as if rounds had committed 1, 4, 23 and 20
        drafter.feed([features(at, base_len - 1)])
        at = base_len - 1
        anchors = torch.tensor([TOKENS[at]])
        cache = ContextCache()
        cache.append(*network.context(STATES[:at].float(), torch.arange(at)))
        tokens, estimates = network.greedy(network.block(anchors, torch.tensor([at]), [cache]), anchors)
        [proposal] = drafter.propose([Ask("a", base_len, 32)])
        drafts = tokens[0].tolist()
        if EOS in drafts:
            drafts = drafts[: drafts.index(EOS) + 1]
        assert proposal.tokens == tuple(drafts)
        assert (proposal.drafter, proposal.proposer_model_id) == (config.drafter, "tiny-dspark")
        assert proposal.confidence == (() if estimates is None else pytest.approx(estimates[0].tolist(), rel=1e-4))


def test_both_backends_draft_alike_and_no_more_than_asked() -> None:
    network = bf16_network()
    proposals: list[list[Proposal]] = []
    for backend in backends(network):
        drafter = drafter_of(backend, network)
        for name in "ab":
            drafter.open(session(name))
        drafter.feed([features(0, 40), features(0, 20, "b"), features(20, 30, "b"), features(40, 60)])
        proposals.append(drafter.propose([Ask("a", 61, 2), Ask("b", 31, 1)]))
    for found in proposals:
        assert [len(each.tokens) for each in found] == [2, 1]
        assert [each.tokens for each in found] == [each.tokens for each in proposals[0]]


def test_an_ask_whose_context_is_not_its_own_is_answered_empty() -> None:
    network = small_drafter().requires_grad_(False)
    drafter = drafter_of(TorchBackend(network, 512), network)
    drafter.open(session())
    drafter.feed([features(0, 20)])
    assert drafter.propose([Ask("a", 30, 4)])[0].tokens == ()  # features are late
    drafter.feed([features(25, 29)])  # … and some were lost
    assert drafter.length("a") == 20
    drafter.feed([features(20, 29), features(0, 20, "unknown")])
    assert drafter.propose([Ask("a", 30, 4)])[0].tokens
    assert drafter.propose([Ask("a", 29, 4)])[0].tokens == ()  # somebody asks about the past
    drafter.open(session())  # a new lease, of perhaps another text
    assert drafter.length("a") == 0


def test_temperature_draws_with_the_noise_of_the_target_over_its_token_ids() -> None:
    network = small_drafter().requires_grad_(False)
    sampling = SamplingParams(temperature=0.9, seed=1234, max_tokens=64, ignore_eos=True)
    seen = set()
    for choice in range(8):
        drafter = drafter_of(TorchBackend(network, 512), network)
        opened = session(sampling=sampling)
        opened.choice = choice
        drafter.open(opened)
        drafter.feed([features(0, 29)])
        [proposal] = drafter.propose([Ask("a", 30, 2)])
        first = _full(network, 30, ())
        assert proposal.tokens[0] == int(sample(first[None], [Row(sampling, 20, choice)])[0])
        second = _full(network, 30, proposal.tokens[:1])
        assert proposal.tokens[1] == int(sample(second[None], [Row(sampling, 21, choice)])[0])
        assert not proposal.distributions
        seen.add(proposal.tokens)
    assert len(seen) > 1


def _full(network: HiddenDrafter, base_len: int, drafts: tuple[int, ...]) -> Tensor:
    """Logits of the next draft over the target's vocabulary."""
    cache = ContextCache()
    cache.append(*network.context(STATES[: base_len - 1].float(), torch.arange(base_len - 1)))
    anchors = torch.tensor([TOKENS[base_len - 1]])
    rows = network.block(anchors, torch.tensor([base_len - 1]), [cache])
    previous = torch.tensor([drafts[-1] if drafts else TOKENS[base_len - 1]])
    full = torch.full((VOCAB,), -torch.inf)
    full[network.target_ids] = network.biased(network.head(rows[:, len(drafts)]), previous)[0]
    return full


def test_options_shape_drafts() -> None:
    network = small_drafter().requires_grad_(False)
    likeliest = int(_full(network, 30, ()).argmax())
    drafter = drafter_of(TorchBackend(network, 512), network)
    drafter.open(session(sampling=SamplingParams(temperature=0.0, max_tokens=64, logit_bias=((likeliest, -100.0),))))
    drafter.feed([features(0, 29)])
    [proposal] = drafter.propose([Ask("a", 30, 4)])
    left = _full(network, 30, ())
    left[likeliest] -= 100
    assert proposal.tokens[0] == int(left.argmax())
    assert likeliest not in proposal.tokens


def test_drafting_stops_after_an_end_but_not_in_rejection_mode() -> None:
    network = small_drafter().requires_grad_(False)
    first = int(_full(network, 30, ()).argmax())
    plain = SamplingParams(temperature=0.0, max_tokens=64, stop_token_ids=(first,))
    sharp = SamplingParams(
        temperature=1e-3, max_tokens=64, stop_token_ids=(first,), verification_mode=VerificationMode.REJECTION
    )
    lengths = []
    for sampling in (plain, sharp):
        drafter = drafter_of(TorchBackend(network, 512), network)
        drafter.open(session(sampling=sampling))
        drafter.feed([features(0, 29)])
        [proposal] = drafter.propose([Ask("a", 30, K)])
        assert proposal.tokens[0] == first
        lengths.append(len(proposal.tokens))
    assert lengths == [1, K]


def test_in_rejection_mode_each_draft_comes_with_what_it_was_drawn_from() -> None:
    network = small_drafter().requires_grad_(False)
    sampling = SamplingParams(temperature=1.0, max_tokens=64, seed=7, verification_mode=VerificationMode.REJECTION)
    drafter = drafter_of(TorchBackend(network, 512), network)
    drafter.open(session(sampling=sampling))
    drafter.feed([features(0, 29)])
    [proposal] = drafter.propose([Ask("a", 30, K)])
    assert len(proposal.distributions) == len(proposal.tokens) == K
    for step, (token, sent) in enumerate(zip(proposal.tokens, proposal.distributions, strict=True)):
        assert token in sent.ids
        p = _full(network, 30, proposal.tokens[:step]).double().softmax(0)
        assert math.fsum(sent.probabilities) == pytest.approx(1, abs=1e-5)
        for place, each in enumerate(sent.ids):
            assert sent.probabilities[place] == pytest.approx(float(p[each]), rel=1e-3)


def test_contexts_that_have_no_room_are_forgotten_and_said_so() -> None:
    network = small_drafter().requires_grad_(False)
    drafter = drafter_of(TorchBackend(network, 128), network)
    for name in "abc":
        drafter.open(session(name))
    drafter.feed([features(0, 29, "a"), features(0, 29, "b")])
    assert drafter.propose([Ask("a", 30, 1)])[0].tokens
    drafter.feed([features(0, 29, "c")])  # b was asked about longest ago
    assert drafter.forgotten() == {"b"}
    assert not drafter.forgotten()
    assert [each.tokens != () for each in drafter.propose([Ask("a", 30, 1), Ask("b", 30, 1), Ask("c", 30, 1)])] == [
        True, False, True,
    ]  # fmt: skip
    drafter.feed([features(0, 29, "b")])
    assert drafter.forgotten() == {"a"}
    drafter.close("b")
    drafter.open(session("d", prompt_len=1, tokens=TOKENS * 3))
    drafter.feed([features(0, 90, "d")])  # as many as there is room for, at the cost of all others
    assert drafter.forgotten() == {"c"}
    drafter.feed([features(90, 180, "d", states=STATES.repeat(2, 1))])  # nobody has room for so many
    assert drafter.length("d") == 0
    assert drafter.forgotten() == {"d"}


def test_no_time_no_drafts() -> None:
    network = small_drafter().requires_grad_(False)
    served = Served(network, TorchBackend(network, 512), projector="p", model_id="m")
    times = iter(range(10**6))
    drafter = ContextDrafter(served, DraftShaping(vocab_size=VOCAB, eos=(EOS,)), clock=lambda: float(next(times)))
    drafter.open(session())  # a pass takes a second by this clock
    drafter.feed([features(0, 29)])
    assert drafter.propose([Ask("a", 30, 4, budget_s=0.01)])[0].tokens == ()
    assert drafter.propose([Ask("a", 30, 4, budget_s=30.0)])[0].tokens
