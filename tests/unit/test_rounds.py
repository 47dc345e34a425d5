"""One session's rounds, message by message."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from paceline.speculation.actions import (
    Action,
    Answered,
    AskDraft,
    Commit,
    Failed,
    Finished,
    Phase,
    Reopen,
    SessionSpec,
)
from paceline.speculation.digest import PrefixDigest
from paceline.speculation.errors import StaleLease
from paceline.speculation.leases import Side
from paceline.speculation.messages import (
    NO_TRACE,
    DraftResult,
    DraftTask,
    Fence,
    Finish,
    FinishReason,
    Proposal,
    Resync,
    ResyncReason,
    SessionOpen,
    Timing,
    TokenSource,
    Trace,
    Verdict,
    VerifyResult,
    VerifyTask,
)
from paceline.speculation.params import SamplingParams, SpeculationMode, SpeculationParams
from paceline.speculation.rounds import Session

DEADLINE = 0.1
T, A, C, B = TokenSource.TARGET_ONLY, TokenSource.ACCEPTED, TokenSource.CORRECTED, TokenSource.BONUS


def make(mode: SpeculationMode = SpeculationMode.FIXED, k: int | None = 3, **fields: object) -> Session:
    spec = SessionSpec("s", (1, 2, 3), SamplingParams(max_tokens=100), SpeculationParams(mode, k))
    return Session(replace(spec, **fields), draft_deadline_s=DEADLINE, verify_deadline_s=1.0)  # type: ignore[arg-type]


def open_on(session: Session, side: Side, worker: str, now: float = 0.0) -> SessionOpen:
    opening = session.open(side, worker, now + 1, router_id="r", trace=NO_TRACE, drafter="ngram", numerics="class")
    assert session.opened(side, opening.lease_epoch, f"{worker}#1")
    return opening


def leased(mode: SpeculationMode = SpeculationMode.FIXED, k: int | None = 3, **fields: object) -> Session:
    session = make(mode, k, **fields)
    open_on(session, Side.TARGET, "t")
    open_on(session, Side.DRAFT, "d")
    return session


def begin(session: Session, now: float = 0.0, *, wait: bool = True) -> list[Action]:
    k = session.draft_tokens(now, default_k=4, limit=32)
    return session.begin(now, k, lambda round_id: Trace(f"round-{round_id}"), wait=wait)


def phase(session: Session) -> Phase:
    return session.phase


def asked(actions: list[Action]) -> DraftTask:
    (action,) = actions
    assert isinstance(action, AskDraft)
    return action.task


def verdict(task: VerifyTask, *tokens: int, finish: Finish | None = None, timing: Timing | None = None) -> VerifyResult:
    drafted = task.proposal.tokens
    accepted = sum(1 for drafted_token, token in zip(drafted, tokens, strict=False) if drafted_token == token)
    last = T if not drafted else B if accepted == len(drafted) else C
    sources = (A,) * accepted + (last,) * (len(tokens) - accepted)
    outcome = Verdict(tokens, sources, len(drafted), accepted, finish=finish, verifier_model_id="m")
    return VerifyResult(task.fence, outcome, timing or Timing())


def commit_of(actions: list[Action]) -> Commit:
    assert isinstance(actions[0], Commit)
    return actions[0]


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


def test_a_resync_of_the_draft_worker_costs_one_round_without_drafts() -> None:
    session = leased()
    fence = asked(begin(session)).fence
    actions = session.on_draft(DraftResult(fence, Resync(ResyncReason.UNKNOWN_SESSION)), 0.01)
    assert actions == [Answered("d", 0.01, True), Reopen(Side.DRAFT, "d")]
    assert phase(session) is Phase.READY


def test_a_lost_draft_worker_lets_the_round_go_on_at_once() -> None:
    session = leased()
    begin(session)
    lease = session.lose(Side.DRAFT, 0.01)
    assert lease is not None
    assert phase(session) is Phase.READY
    assert session.dispatch(0.01).task.proposal.tokens == ()


def test_a_repeated_verdict_commits_once() -> None:
    session = leased(SpeculationMode.OFF, None)
    begin(session)
    result = verdict(session.dispatch(0.0).task, 7)
    session.on_verdict(result, 0.1)
    assert session.on_verdict(result, 0.2) == []
    begin(session, 0.2)
    session.dispatch(0.2)
    assert session.on_verdict(result, 0.3) == []
    assert session.tokens == [1, 2, 3, 7]
    assert session.ignored == 2


def test_a_verdict_of_an_earlier_lease_changes_nothing() -> None:
    session = leased(SpeculationMode.OFF, None)
    begin(session)
    old = verdict(session.dispatch(0.0).task, 7)
    session.lose(Side.TARGET, 0.1)
    open_on(session, Side.TARGET, "u", 0.1)
    begin(session, 0.1)
    session.dispatch(0.1)
    assert session.on_verdict(old, 0.2) == []
    assert session.output_len == 0


def test_a_resync_of_the_target_reopens_with_prompt_and_committed_tokens_under_a_larger_epoch() -> None:
    session = leased(SpeculationMode.OFF, None)
    begin(session)
    session.on_verdict(verdict(session.dispatch(0.0).task, 7), 0.1)
    begin(session, 0.1)
    fence = session.dispatch(0.1).task.fence
    assert session.on_verdict(VerifyResult(fence, Resync(ResyncReason.PREFIX_MISMATCH)), 0.2) == [
        Reopen(Side.TARGET, "t")
    ]
    assert phase(session) is Phase.OPENING
    opening = open_on(session, Side.TARGET, "t", 0.2)
    assert (opening.tokens, opening.prompt_len) == ((1, 2, 3, 7), 3)
    assert opening.lease_epoch > fence.lease_epoch
    assert phase(session) is Phase.NEEDS_DRAFT


def test_a_newer_lease_elsewhere_ends_the_session() -> None:
    session = leased(SpeculationMode.OFF, None)
    begin(session)
    fence = session.dispatch(0.0).task.fence
    (failed,) = session.on_verdict(VerifyResult(fence, Resync(ResyncReason.STALE_LEASE)), 0.1)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, StaleLease)
    assert phase(session) is Phase.DONE


def test_a_verdict_that_commits_nothing_reopens_rather_than_asking_for_ever() -> None:
    session = leased(SpeculationMode.OFF, None)
    begin(session)
    result = VerifyResult(session.dispatch(0.0).task.fence, Verdict((), (), 0, 0))
    assert session.on_verdict(result, 0.1) == [Reopen(Side.TARGET, "t")]


def test_a_finish_is_the_last_thing_a_session_does() -> None:
    session = leased(SpeculationMode.OFF, None)
    begin(session)
    task, finish = session.dispatch(0.0).task, Finish(FinishReason.STOP, stop_token_id=7)
    actions = session.on_verdict(verdict(task, 7, finish=finish), 0.1)
    assert actions[1:] == [Finished(finish)]
    assert phase(session) is Phase.DONE
    assert session.on_verdict(verdict(task, 7), 0.2) == []
    assert not session.opened(Side.DRAFT, 3, "d#1")


def test_an_opening_that_was_overtaken_is_not_taken() -> None:
    session = make()
    first = session.open(Side.TARGET, "t", 1.0, router_id="r", trace=NO_TRACE, drafter="", numerics="")
    second = session.open(Side.TARGET, "u", 1.0, router_id="r", trace=NO_TRACE, drafter="", numerics="")
    assert not session.opened(Side.TARGET, first.lease_epoch, "t#1")
    assert session.opened(Side.TARGET, second.lease_epoch, "u#1")
    assert not session.opened(Side.TARGET, second.lease_epoch, "u#1")


def test_a_resumed_session_goes_on_after_what_was_committed_above_the_last_epoch() -> None:
    session = make(committed=(8, 9), lease_epoch=5)
    opening = session.open(Side.TARGET, "t", 1.0, router_id="r", trace=NO_TRACE, drafter="", numerics="c")
    assert (opening.lease_epoch, opening.tokens, opening.numerics_class) == (6, (1, 2, 3, 8, 9), "c")
    session.opened(Side.TARGET, 6, "t#1")
    begin(session)
    assert commit_of(session.on_verdict(verdict(session.dispatch(0.0).task, 4), 0.1)).index == 2


def test_openings_that_take_too_long_are_told() -> None:
    session = make()
    session.open(Side.TARGET, "t", 1.0, router_id="r", trace=NO_TRACE, drafter="", numerics="")
    assert session.leases.overdue(0.9) == []
    assert session.leases.overdue(1.0) == [Side.TARGET]
