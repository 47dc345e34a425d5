"""Rounds that come twice, late, or in place of another; and steps that many share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paceline.speculation.messages import (
    Resync,
    ResyncReason,
)

from tests.unit.target_answers import ANSWER, S1, WRONG
from tests.unit.target_kit import (
    make_verifier,
    opening,
    run_step,
    task,
    verdict_of,
)


def test_a_repeated_round_is_answered_once_while_it_runs_and_again_afterwards() -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    assert verifier.submit("r1", task(S1), 0.0) is None
    assert verifier.submit("r1", task(S1), 0.0) is None
    plan = verifier.plan(0.0)
    assert plan is not None
    assert verifier.submit("r1", task(S1), 0.0) is None
    (served,) = verifier.complete(plan, engine.step(plan), 0.0)
    again = verifier.submit("r1", task(S1), 0.0)
    assert served.result is not None
    assert again is not None
    assert again.outcome == served.result.outcome
    assert verifier.plan(0.0) is None


def test_a_newer_round_replaces_a_waiting_one() -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    verifier.submit("r1", task(S1, drafts=WRONG[:2], round_id=1), 0.0)
    assert verifier.submit("r1", task(S1, drafts=ANSWER[:2], round_id=2), 0.0) is None
    old = verifier.submit("r1", task(S1, round_id=1), 0.0)
    assert old is not None
    assert old.outcome == Resync(ResyncReason.OLD_ROUND, 3)
    (result,) = run_step(verifier, engine)
    assert (result.fence.round_id, verdict_of([result]).accepted) == (2, 2)


def test_a_newer_round_replaces_one_that_is_still_catching_up() -> None:
    verifier, engine = make_verifier(step_tokens=2)
    verifier.open(S1, 0.0)
    verifier.submit("r1", task(S1), 0.0)
    plan = verifier.plan(0.0)
    assert plan is not None
    assert verifier.submit("r1", task(S1, round_id=2), 0.0) is None
    verifier.complete(plan, engine.step(plan), 0.0)
    verifier.check_integrity()
    (result,) = run_step(verifier, engine)
    assert result.fence.round_id == 2


def test_a_newer_round_during_the_step_that_answers_does_not_fit() -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    verifier.submit("r1", task(S1), 0.0)
    plan = verifier.plan(0.0)
    assert plan is not None
    newer = verifier.submit("r1", task(S1, round_id=2), 0.0)
    assert newer is not None
    assert newer.outcome == Resync(ResyncReason.PREFIX_MISMATCH, 3)
    assert verifier.complete(plan, engine.step(plan), 0.0)[0].result is not None


@pytest.mark.parametrize(
    ("router", "sent", "reason", "known"),
    [
        ("r1", task(opening("other")), ResyncReason.UNKNOWN_SESSION, 0),
        ("r1", task(S1, incarnation="inc-0"), ResyncReason.OTHER_INCARNATION, 3),
        ("r1", task(opening("other"), incarnation="inc-0"), ResyncReason.OTHER_INCARNATION, 0),
        ("r2", task(S1), ResyncReason.STALE_LEASE, 3),
        ("r1", task(replace(S1, lease_epoch=0)), ResyncReason.STALE_LEASE, 3),
        ("r1", task(replace(S1, lease_epoch=2)), ResyncReason.UNKNOWN_SESSION, 0),
        ("r1", task(S1, (9,)), ResyncReason.PREFIX_MISMATCH, 3),
    ],
)
def test_what_does_not_fit_is_told_at_once(router: str, sent: object, reason: ResyncReason, known: int) -> None:
    verifier, _ = make_verifier()
    verifier.open(S1, 0.0)
    answer = verifier.submit(router, sent, 0.0)  # type: ignore[arg-type]
    assert answer is not None
    assert answer.outcome == Resync(reason, known)
    assert verifier.waiting == 0


def test_rounds_of_all_routers_share_a_step_and_a_full_step_is_fair() -> None:
    verifier, engine = make_verifier(step_tokens=4)
    for i in range(8):
        source = opening(f"s{i}", tokens=(i,), router_id="busy" if i < 6 else "quiet")
        verifier.open(source, 0.0)
        verifier.submit(source.router_id, task(source), 0.0)
    run_step(verifier, engine)
    run_step(verifier, engine)
    served = [[piece.session_id for piece in plan.slices] for plan in engine.plans]
    assert served == [["s0", "s6", "s1", "s7"], ["s2", "s3", "s4", "s5"]]
    assert verifier.plan(0.0) is None
