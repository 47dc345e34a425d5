"""The drafter that takes a lookup or a model's drafts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from paceline.drafters.choice import ChoiceDrafter, FeatureChoiceDrafter, chooser
from paceline.drafters.evidence import agreeing
from paceline.drafters.interface import Ask, DraftSession, FeatureDrafter, Features, SharedDrafter
from paceline.drafters.ngram import NgramDrafter
from paceline.speculation.messages import Proposal
from paceline.speculation.params import SamplingParams, VerificationMode

from tests.unit.draft_kit import opening

TOKEN_S, ROW_S, COST_S = 0.01, 0.0003, 0.003


class Oracle:
    """A model that knows the text, is right about each token with a chance, and takes its time."""

    name, model_id, needs_features = "oracle", "oracle-model", False

    def __init__(self, text: Sequence[int], chance: float, cost_s: float = COST_S) -> None:
        self.text, self.chance, self.cost_s = list(text), chance, cost_s
        self.now = 0.0
        self.rng = random.Random(1)
        self.asked: list[Ask] = []
        self.open_sessions: set[str] = set()

    def clock(self) -> float:
        return self.now

    def open(self, session: DraftSession) -> None:
        self.open_sessions.add(session.session_id)

    def close(self, session_id: str) -> None:
        self.open_sessions.discard(session_id)

    def propose(self, asks: Sequence[Ask]) -> list[Proposal]:
        assert all(ask.session_id in self.open_sessions for ask in asks)
        self.asked += asks
        self.now += self.cost_s
        return [Proposal(tuple(self._drafts(ask)), self.name, self.model_id) for ask in asks]

    def _drafts(self, ask: Ask) -> list[int]:
        truth = self.text[ask.base_len : ask.base_len + ask.max_tokens]
        return [token if self.rng.random() < self.chance else token + 1000 for token in truth]


class FeatureOracle(Oracle):
    """The same, on features."""

    needs_features = True
    projector = "projector"
    feature_width = 4

    def feed(self, features: Sequence[Features]) -> None:
        self.fed = list(features)

    def forgotten(self) -> frozenset[str]:
        return frozenset({"x"})


class Written:
    """A text that is written round by round with what a drafter proposes."""

    def __init__(self, drafter: ChoiceDrafter, text: Sequence[int], name: str = "auto") -> None:
        self.drafter, self.text = drafter, list(text)
        start = opening(tokens=self.text[:8], sampling=SamplingParams(max_tokens=100_000), drafter=name)
        self.session = DraftSession.opened(start, name)
        drafter.open(self.session)
        self.proposals: list[Proposal] = []
        self.accepted: list[int] = []

    def run(self, until: int, k: int = 6) -> Written:
        tokens = self.session.tokens
        while len(tokens) < until:
            (proposal,) = self.drafter.propose([Ask("s", len(tokens), k, token_s=TOKEN_S, row_s=ROW_S)])
            accepted = agreeing(proposal.tokens, self.text, len(tokens), len(self.text))
            tokens.extend(self.text[len(tokens) : len(tokens) + accepted + 1])
            self.proposals.append(proposal)
            self.accepted.append(accepted)
        return self

    @property
    def tau(self) -> float:
        return 1 + sum(self.accepted) / len(self.accepted)

    def share(self, drafter: str, since: int = 0) -> float:
        chosen = [proposal.drafter for proposal in self.proposals[since:] if proposal.tokens]
        return chosen.count(drafter) / max(1, len(chosen))


def random_text(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(50) for _ in range(length)]


def made(model: Oracle) -> ChoiceDrafter:
    return chooser(model, NgramDrafter(), clock=model.clock)


def test_where_the_text_repeats_lookup_is_taken_and_the_model_is_left_alone() -> None:
    text = random_text(20) * 40
    model = Oracle(text, 0.6)
    written = Written(made(model), text).run(700)
    assert written.share("ngram", since=40) == 1
    assert len(model.asked) < 30
    assert written.tau > 5


def test_where_nothing_repeats_the_model_is_taken() -> None:
    rng = random.Random(3)
    text = [rng.randrange(10**6) for _ in range(700)]
    model = Oracle(text, 0.8)
    written = Written(made(model), text).run(600)
    assert written.share("oracle") > 0.95
    assert written.tau > 2.5


def test_a_model_that_knows_nothing_is_asked_less_and_less() -> None:
    rng = random.Random(3)
    text = [rng.randrange(10**6) for _ in range(1500)]
    model = Oracle(text, 0.0)
    written = Written(made(model), text).run(1400)
    assert len(model.asked) < 50
    assert not any(written.accepted)
    assert sum(not proposal.tokens for proposal in written.proposals) > 1300


def mixture(length: int, seed: int) -> list[int]:
    """Passages that are new, and passages that were written before."""
    rng = random.Random(seed)
    text = [rng.randrange(5000) for _ in range(40)]
    while len(text) < length:
        if rng.random() < 0.5:
            start = rng.randrange(len(text) - 20)
            text += text[start : start + 20]
        else:
            text += [rng.randrange(5000) for _ in range(20)]
    return text


def test_both_together_beat_either_alone() -> None:
    text = mixture(1600, 5)
    lookup = Written(made(Oracle(text, 0.0, cost_s=1.0)), text).run(1500)
    alone = Written(made(Oracle(text, 0.55)), text, name="oracle").run(1500)
    model = Oracle(text, 0.55)
    both = Written(made(model), text).run(1500)
    assert {"ngram", "oracle"} == {proposal.drafter for proposal in both.proposals if proposal.tokens}
    rounds = [len(written.proposals) for written in (lookup, alone, both)]
    assert rounds[2] < 0.95 * rounds[0]
    assert rounds[2] < 0.95 * rounds[1]
    alone_s = rounds[1] * (TOKEN_S + COST_S)
    assert rounds[2] * TOKEN_S + len(model.asked) * COST_S < alone_s


def test_a_proposal_says_whose_it_is_and_how_sure() -> None:
    text = mixture(800, 7)
    written = Written(made(Oracle(text, 0.5)), text).run(700)
    owners = {"ngram": "ngram", "oracle": "oracle-model"}
    for proposal in written.proposals:
        if proposal.tokens:
            assert proposal.proposer_model_id == owners[proposal.drafter]
            assert len(proposal.confidence) == len(proposal.tokens)
            assert all(0 < chance < 1 for chance in proposal.confidence)


def test_a_session_that_names_the_model_gets_the_model() -> None:
    text = random_text(20) * 20
    model = Oracle(text, 0.5)
    drafter = made(model)
    assert isinstance(drafter, SharedDrafter)
    assert drafter.others == {"oracle": "oracle-model"}
    written = Written(drafter, text, name="oracle").run(300)
    assert written.share("oracle") == 1
    assert len(model.asked) == len(written.proposals)


def test_lookups_are_cut_where_rows_cost_more_than_they_bring() -> None:
    text = mixture(900, 9)
    model = Oracle(text, 0.0)
    drafter = made(model)
    Written(drafter, text).run(800)
    found = [p for p in Written(drafter, text).run(800, k=16).proposals if p.drafter == "ngram" and p.tokens]
    lengths = {len(proposal.tokens) for proposal in found}
    assert len(lengths) > 1
    for proposal in found:
        survival = 1.0
        for chance in proposal.confidence:
            survival *= chance
        assert survival > ROW_S / TOKEN_S


def test_distributions_are_cut_with_the_tokens() -> None:
    text = mixture(600, 2)
    rejecting = SamplingParams(temperature=1.0, max_tokens=10_000, verification_mode=VerificationMode.REJECTION)
    written = Written(made(Oracle(text, 0.0)), text)
    written.session.sampling = rejecting
    written.run(500)
    found = [proposal for proposal in written.proposals if proposal.tokens]
    assert any(len(proposal.distributions) == len(proposal.tokens) for proposal in found if proposal.drafter == "ngram")


def test_without_prices_the_longer_gain_wins() -> None:
    text = random_text(10) * 10
    model = Oracle(text, 0.1)
    drafter = made(model)
    written = Written(drafter, text).run(60)
    length = len(written.session.tokens)
    (proposal,) = drafter.propose([Ask("s", length, 4)])
    assert proposal.drafter == "ngram"
    assert len(proposal.tokens) == 4


def test_who_fixes_k_is_never_left_without_drafts() -> None:
    rng = random.Random(3)
    text = [rng.randrange(10**6) for _ in range(400)]
    drafter = made(Oracle(text, 0.0, cost_s=1.0))
    session = Written(drafter, text).session
    for length in range(len(session.tokens), 300):
        session.tokens[:] = text[:length]
        (proposal,) = drafter.propose([Ask("s", length, 4)])
        assert len(proposal.tokens) == 4


def test_features_reach_the_model() -> None:
    model = FeatureOracle([1, 2, 3], 0.5)
    drafter = made(model)
    assert isinstance(drafter, FeatureChoiceDrafter)
    assert isinstance(drafter, FeatureDrafter)
    assert not isinstance(made(Oracle([1], 0.5)), FeatureDrafter)
    piece = Features("s", 0, 1, b"\0" * 8)
    drafter.feed([piece])
    assert model.fed == [piece]
    assert (drafter.projector, drafter.feature_width, drafter.needs_features) == ("projector", 4, True)
    assert drafter.forgotten() == frozenset({"x"})


def test_closing_and_opening_again() -> None:
    text = random_text(20) * 10
    model = Oracle(text, 0.5)
    drafter = made(model)
    written = Written(drafter, text).run(100)
    again = replace(written.session, tokens=list(written.session.tokens))
    drafter.open(again)
    (proposal,) = drafter.propose([Ask("s", len(again.tokens), 4, token_s=TOKEN_S)])
    assert proposal.tokens
    drafter.close("s")
    drafter.close("s")
    assert model.open_sessions == set()


def test_sessions_share_what_a_pass_of_the_model_costs() -> None:
    rng = random.Random(4)
    text = [rng.randrange(10**6) for _ in range(400)]
    model = Oracle(text, 0.5, cost_s=0.02)  # twice a round: too much for one, little for sixteen
    drafter = made(model)
    Written(drafter, text).run(100)
    asked_alone = len(model.asked)
    names = [f"s{number}" for number in range(16)]
    for name in names:
        drafter.open(DraftSession.opened(opening(name, text[:100], sampling=SamplingParams(max_tokens=10_000)), "auto"))
    before = len(model.asked)
    for _ in range(3):
        drafter.propose([Ask(name, 100, 4, token_s=TOKEN_S, row_s=ROW_S) for name in names])
    assert asked_alone < 60
    assert len(model.asked) - before >= 16
