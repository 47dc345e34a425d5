"""Rejection mode and relaxed acceptance from drafter to verdict: what was drawn from travels with the drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from paceline.drafters.interface import Ask, Drafter, DraftSession
from paceline.drafters.model import ModelDrafter
from paceline.drafters.ngram import NgramDrafter
from paceline.engine.fake import FakeEngine, FakeOptions
from paceline.router.runner import _within
from paceline.runtime import wire
from paceline.speculation.digest import PrefixDigest
from paceline.speculation.messages import DraftResult, Fence, Proposal, SparseDistribution, Verdict, VerifyTask
from paceline.speculation.params import SamplingParams, VerificationMode
from paceline.target.sessions import Limits
from paceline.target.verifier import Verifier

from tests.unit.draft_kit import opening

VOCAB = 16
PROMPT = (1, 2, 3, 1, 2)
TARGET = FakeOptions(vocab_size=VOCAB, order=1, spread=1.0, eos=0)


class Silent:
    """Spells nothing."""

    def feed(self, token: int) -> str:
        return ""


def verifier(**limits: Any) -> Verifier:
    engine = FakeEngine(TARGET, sleep=None)
    made = Verifier(engine, engine.info, limits=Limits(**limits), incarnation="v", detokenizer=Silent)
    made.engine = engine  # type: ignore[attr-defined]
    return made


def fence(tokens: list[int], round_id: int) -> Fence:
    return Fence("s", "v", 1, round_id, len(tokens), PrefixDigest(tokens).value)


def verify(target: Verifier, tokens: list[int], proposal: Proposal, round_id: int = 1) -> Verdict:
    """One round, over the wire."""
    message = wire.to_verify_task(VerifyTask(fence(tokens, round_id), proposal))
    assert target.submit("r", wire.from_verify_task(message), 0.0) is None
    plan = target.plan(0.0)
    assert plan is not None
    (served,) = target.complete(plan, target.engine.step(plan), 0.0)  # type: ignore[attr-defined]
    target.check_integrity()
    assert served.result is not None
    assert isinstance(served.result.outcome, Verdict)
    return served.result.outcome


def answer(params: SamplingParams, drafter: Drafter | None, k: int) -> tuple[list[int], int]:
    """A whole answer, and how many drafts were accepted."""
    target = verifier()
    begun = opening("s", PROMPT, sampling=params)
    target.open(begun, 0.0)
    session = DraftSession.opened(begun, "")
    if drafter is not None:
        drafter.open(session)
    accepted = round_id = 0
    while len(session.tokens) < len(PROMPT) + params.max_tokens:
        round_id += 1
        count = min(k, len(PROMPT) + params.max_tokens - len(session.tokens) - 1)
        proposal = Proposal(())
        if drafter is not None and count:
            (proposal,) = drafter.propose([Ask("s", len(session.tokens), count)])
        message = wire.to_draft_result(DraftResult(fence(session.tokens, round_id), proposal))
        outcome = wire.from_draft_result(message).outcome
        assert isinstance(outcome, Proposal)
        verdict = verify(target, session.tokens, outcome, round_id)
        accepted += verdict.accepted
        assert not verdict.lossy or params.relaxed_acceptance is not None
        session.tokens.extend(verdict.tokens)
    return session.tokens[len(PROMPT) :], accepted


def model(quality: float = 0.7) -> ModelDrafter:
    return ModelDrafter(FakeEngine(replace(TARGET, quality=quality), sleep=None))


REJECTING = SamplingParams(seed=3, max_tokens=64, verification_mode=VerificationMode.REJECTION)
DRAFTERS: dict[str, Callable[[], Drafter]] = {"model": model, "ngram": lambda: NgramDrafter(1, 2)}


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_same_drafts_give_the_same_text_and_some_are_accepted(name: str) -> None:
    first, accepted = answer(REJECTING, DRAFTERS[name](), 4)
    assert (first, accepted) == answer(REJECTING, DRAFTERS[name](), 4)
    assert accepted > 0


def test_without_drafts_it_is_agreement() -> None:
    agreement = replace(REJECTING, verification_mode=VerificationMode.AGREEMENT)
    assert answer(REJECTING, None, 0) == answer(agreement, None, 0)


@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_it_is_agreement(name: str) -> None:
    greedy = replace(REJECTING, temperature=0.0)
    agreement = replace(greedy, verification_mode=VerificationMode.AGREEMENT)
    assert answer(greedy, DRAFTERS[name](), 4) == answer(agreement, DRAFTERS[name](), 4)


def test_a_perfect_drafter_is_always_accepted() -> None:
    """TV is 0 where the whole vocabulary fits into the distribution sent."""
    tokens, accepted = answer(REJECTING, model(1.0), 3)
    assert accepted >= len(tokens) * 3 // 4 - 1


def test_drafts_go_on_after_an_end() -> None:
    """A draft that ended early would come in time more often: whether it is verified would depend on what it is."""
    ending = FakeEngine(FakeOptions(vocab_size=VOCAB, eos=1.0), sleep=None)
    drafter = ModelDrafter(ending)
    drafter.open(DraftSession.opened(opening("s", PROMPT, sampling=REJECTING), ""))
    (proposal,) = drafter.propose([Ask("s", len(PROMPT), 4)])
    assert len(proposal.tokens) == len(proposal.distributions) == 4


def test_what_a_lookup_finds_is_certain() -> None:
    drafter = NgramDrafter()
    drafter.open(DraftSession.opened(opening("s", PROMPT, sampling=REJECTING), ""))
    drafter.open(DraftSession.opened(opening("a", PROMPT), ""))
    rejecting, agreeing = drafter.propose([Ask("s", len(PROMPT), 2), Ask("a", len(PROMPT), 2)])
    assert rejecting.distributions == tuple(SparseDistribution((token,), (1.0,)) for token in rejecting.tokens) != ()
    assert (agreeing.tokens, agreeing.distributions) == (rejecting.tokens, ())


def _even(*ids: int) -> SparseDistribution:
    return SparseDistribution(ids, (1 / len(ids),) * len(ids))


def test_a_draft_the_target_has_no_row_for_is_rejected_in_place() -> None:
    target = verifier()
    target.open(opening("s", PROMPT, sampling=REJECTING), 0.0)
    foreign = Proposal((VOCAB + 1, 3), "d", "m", distributions=(_even(VOCAB + 1, 5), _even(3)))
    assert _within(DraftResult(fence(list(PROMPT), 1), foreign), VOCAB).outcome == foreign
    verdict = verify(target, list(PROMPT), foreign)
    assert (verdict.verify_len, verdict.accepted, len(verdict.tokens)) == (1, 0, 1)
    assert verdict.tokens[0] < VOCAB
    agreeing = Proposal((3, VOCAB + 1), "d", "m")
    cut = _within(DraftResult(fence(list(PROMPT), 1), agreeing), VOCAB).outcome
    assert isinstance(cut, Proposal)
    assert cut.tokens == (3,)


@pytest.mark.parametrize("forbidding", [{"bad_words": ((3,),)}, {"min_tokens": 8, "stop_token_ids": (3,)}])
def test_a_forbidden_draft_is_verified_and_never_accepted(forbidding: dict[str, Any]) -> None:
    target = verifier()
    target.open(opening("s", PROMPT, sampling=replace(REJECTING, **forbidding)), 0.0)
    verdict = verify(target, list(PROMPT), Proposal((3, 4), "d", "m", distributions=(_even(3), _even(4))))
    assert (verdict.verify_len, verdict.accepted, len(verdict.tokens)) == (2, 0, 1)
    assert verdict.tokens[0] != 3


def test_drafts_that_do_not_say_what_they_were_drawn_from_are_not_used() -> None:
    target = verifier()
    target.open(opening("s", PROMPT, sampling=REJECTING), 0.0)
    assert verify(target, list(PROMPT), Proposal((3, 4), "d", "m")).verify_len == 0


def test_distributions_are_clipped_with_their_drafts() -> None:
    target = verifier(max_draft_tokens=2)
    target.open(opening("s", PROMPT, sampling=REJECTING), 0.0)
    ids = (1, 2, 3, 4)
    verdict = verify(target, list(PROMPT), Proposal(ids, "d", "m", distributions=tuple(_even(token) for token in ids)))
    assert verdict.verify_len == 2


def test_relaxed_acceptance_is_told_only_where_it_changed_a_token() -> None:
    plain = SamplingParams(seed=3, max_tokens=1 + 3)
    own, _ = answer(plain, None, 0)
    relaxed = replace(plain, relaxed_acceptance=1e-6)
    for draft in range(VOCAB - 1):
        target = verifier()
        target.open(opening("s", PROMPT, sampling=relaxed), 0.0)
        verdict = verify(target, list(PROMPT), Proposal((draft,), "d", "m"))
        assert verdict.tokens[0] == draft
        assert verdict.lossy == (draft != own[0])
    target = verifier()
    target.open(opening("s", PROMPT, sampling=plain), 0.0)
    assert not verify(target, list(PROMPT), Proposal((own[0], own[1]), "d", "m")).lossy
