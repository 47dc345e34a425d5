"""One session's rounds, message by message."""

from __future__ import annotations

from itertools import pairwise

import pytest
from paceline.speculation.actions import (
    Answered,
    AskDraft,
    Phase,
)
from paceline.speculation.digest import PrefixDigest
from paceline.speculation.leases import Side
from paceline.speculation.messages import (
    GRAMMAR,
    DraftResult,
    Fence,
    Proposal,
    Timing,
    Trace,
    Verdict,
    VerifyResult,
)
from paceline.speculation.params import SamplingParams, SpeculationMode
from paceline.speculation.payoff import DrafterRecord, Load, Payoff

from tests.unit.rounds_kit import DEADLINE, A, B, asked, begin, commit_of, leased, make, open_on, phase, verdict


def test_a_round_is_drafted_verified_and_committed() -> None:
    session = leased()
    task = asked(begin(session, 10.0))
    assert task.max_draft_tokens == 3
    assert task.trace == Trace("round-1")
    assert task.fence == Fence("s", "d#1", 2, 1, 3, PrefixDigest((1, 2, 3)).value)
    session.on_draft(DraftResult(task.fence, Proposal((4, 5, 6), "ngram", "g"), Timing(residence_us=10_000)), 10.02)
    assert phase(session) is Phase.READY
    verify = session.dispatch(10.03)
    assert verify.worker == "t"
    assert verify.task.fence.incarnation == "t#1"
    done = commit_of(session.on_verdict(verdict(verify.task, 4, 5, 9, timing=Timing(residence_us=20_000)), 10.06))
    assert (done.index, done.verdict.tokens, done.missed) == (0, (4, 5, 9), False)
    assert done.draft_s == pytest.approx(0.02)
    assert done.verify_s == pytest.approx(0.03)
    assert done.network_us == pytest.approx(20_000, abs=2)
    assert session.tokens == [1, 2, 3, 4, 5, 9]
    assert phase(session) is Phase.NEEDS_DRAFT
    assert session.digest.value == PrefixDigest(session.tokens).value


def test_the_next_task_brings_the_draft_worker_what_was_committed_since_it_last_answered() -> None:
    session = leased()
    task = asked(begin(session))
    session.on_draft(DraftResult(task.fence, Proposal(())), 0.01)
    session.on_verdict(verdict(session.dispatch(0.01).task, 7), 0.02)
    following = asked(begin(session, 0.02))
    assert (following.append_from, following.appended) == (3, (7,))
    assert following.fence.round_id == 2


def test_auto_drafts_from_the_second_round_of_a_target_lease_on() -> None:
    session = leased(SpeculationMode.AUTO, None)
    assert begin(session) == []
    session.on_verdict(verdict(session.dispatch(0.0).task, 7), 0.1)
    assert asked(begin(session, 0.1)).max_draft_tokens == 4


def test_features_can_wait_after_rounds_that_no_question_follows() -> None:
    session = leased(SpeculationMode.AUTO, None, sampling=SamplingParams(max_tokens=400))
    session.payoff = Payoff(DrafterRecord())
    load = Load(lambda rows: 1.0 + rows)  # far too dear
    later, questions = [], []
    for now in range(120):
        k = session.draft_tokens(now, default_k=4, limit=32, load=load)
        questions.append(k > 0)
        for action in session.begin(now, k, lambda round_id: Trace(f"round-{round_id}")):
            assert isinstance(action, AskDraft)
            session.on_draft(DraftResult(action.task.fence, Proposal((1,) * k)), now)
            session.payoff.observe(asked=k, drafted=k, verified=k, accepted=0, draft_s=1.0, missed=False, load=load)
        task = session.dispatch(now).task
        later.append(task.features_later)
        session.on_verdict(verdict(task, 7), now)
    assert sum(questions) > 1
    assert not any(waits and asks for waits, asks in zip(later, questions[1:], strict=False))
    assert sum(later) > 90


def test_no_more_is_drafted_than_can_still_be_committed() -> None:
    session = leased(committed=tuple(range(98)))
    assert asked(begin(session)).max_draft_tokens == 1
    session = leased(committed=tuple(range(99)))
    assert begin(session) == []


def test_speculation_off_never_asks() -> None:
    session = leased(SpeculationMode.OFF, None)
    assert begin(session) == []
    assert phase(session) is Phase.READY


def test_without_a_draft_lease_a_round_goes_on_at_once() -> None:
    session = make()
    open_on(session, Side.TARGET, "t")
    assert begin(session) == []
    assert session.dispatch(0.0).task.proposal.tokens == ()


def test_a_draft_past_its_deadline_is_not_waited_for_and_changes_nothing_when_it_comes() -> None:
    session = leased()
    task = asked(begin(session, 1.0))
    assert not session.expire_draft(1.09)
    assert session.expire_draft(1.1)
    assert phase(session) is Phase.READY
    verify = session.dispatch(1.1)
    assert session.on_draft(DraftResult(task.fence, Proposal((4,))), 1.2) == []
    assert verify.task.proposal.tokens == ()
    done = commit_of(session.on_verdict(verdict(verify.task, 4), 1.3))
    assert done.missed
    assert session.stats.missed_drafts == 1


def test_after_a_miss_rounds_probe_without_waiting_until_an_answer_comes_in_time() -> None:
    session = leased()
    begin(session, 0.0)
    session.expire_draft(0.1)
    session.on_verdict(verdict(session.dispatch(0.1).task, 4), 0.15)
    assert begin(session, 0.15) == []  # still holding back
    session.on_verdict(verdict(session.dispatch(0.15).task, 5), 0.25)
    probe = asked(begin(session, 0.25))
    assert phase(session) is Phase.READY  # not waited for
    session.on_verdict(verdict(session.dispatch(0.25).task, 6), 0.27)
    assert begin(session, 0.27) == []  # one probe at a time
    (answered,) = session.on_draft(DraftResult(probe.fence, Proposal((9,))), 0.28)
    assert isinstance(answered, Answered)
    assert not answered.waited
    assert answered.took_s == pytest.approx(0.03)
    session.on_verdict(verdict(session.dispatch(0.28).task, 7), 0.29)
    begin(session, 0.29)
    assert phase(session) is Phase.DRAFTING  # trusted again


def test_a_probe_in_vain_doubles_the_pause() -> None:
    session = leased()
    now = 0.0
    begin(session, now)
    session.expire_draft(now := 0.1)
    asks = []
    for _ in range(200):
        session.on_verdict(verdict(session.dispatch(now).task, 4), now := now + 0.01)
        if session.draft_tokens(now, 4, 32):
            asks.append(now)
        begin(session, now)
        if session.output_len > 90:
            break
    gaps = [later - earlier for earlier, later in pairwise(asks)]
    assert gaps == sorted(gaps)
    assert len(asks) <= 4


def test_a_repeated_draft_is_ignored() -> None:
    session = leased()
    result = DraftResult(asked(begin(session)).fence, Proposal((4,)))
    session.on_draft(result, 0.01)
    assert session.on_draft(result, 0.02) == []
    assert session.ignored == 1


def test_a_draft_for_an_old_round_or_lease_is_ignored() -> None:
    session = leased()
    old = asked(begin(session)).fence
    session.expire_draft(DEADLINE)
    session.on_verdict(verdict(session.dispatch(0.1).task, 4), 0.2)
    open_on(session, Side.DRAFT, "e", 0.3)
    begin(session, 0.3)
    assert session.on_draft(DraftResult(old, Proposal((9,))), 0.31) == []
    assert phase(session) is Phase.DRAFTING


def test_what_the_verifier_drafted_itself_is_attributed_to_it() -> None:
    session = leased(SpeculationMode.OFF)
    begin(session)
    task = session.dispatch(0.0).task
    outcome = Verdict((4, 5, 6), (A, A, B), 2, 2, verifier_model_id="m", drafter=GRAMMAR)
    commit = commit_of(session.on_verdict(VerifyResult(task.fence, outcome), 1.0))
    assert (commit.drafter, commit.proposer_model_id, commit.drafted) == (GRAMMAR, GRAMMAR, 2)
    assert (session.stats.drafted, session.stats.accepted, session.stats.tau) == (2, 2, 3)
