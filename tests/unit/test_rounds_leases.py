"""Sessions whose workers forget them, die, or are overtaken."""

from __future__ import annotations

from paceline.speculation.actions import (
    Answered,
    Failed,
    Finished,
    Phase,
    Reopen,
)
from paceline.speculation.errors import InvalidRequest, StaleLease
from paceline.speculation.leases import Side
from paceline.speculation.messages import (
    NO_TRACE,
    DraftResult,
    Finish,
    FinishReason,
    Resync,
    ResyncReason,
    Verdict,
    VerifyResult,
)
from paceline.speculation.params import SpeculationMode

from tests.unit.rounds_kit import asked, begin, commit_of, leased, make, open_on, phase, verdict


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


def test_options_that_leave_no_token_end_the_session_with_their_name() -> None:
    """On any target it would be the same: nobody opens it again."""
    session = leased(SpeculationMode.OFF, None)
    begin(session)
    fence = session.dispatch(0.0).task.fence
    (failed,) = session.on_verdict(VerifyResult(fence, Resync(ResyncReason.DEAD_END)), 0.1)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, InvalidRequest)
    assert (failed.error.field, failed.error.got) == ("sampling", "none after 0 tokens")
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
