"""The draft worker's core: fencing, lanes, deadlines, bounds."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.draft.lane import Answer, Batch
from paceline.draft.worker import DraftWorker
from paceline.speculation.errors import InvalidRequest, Overloaded, StaleLease
from paceline.speculation.messages import DraftResult, DraftTask, Proposal, Resync, ResyncReason, Timing
from paceline.speculation.params import SamplingParams

from tests.unit.draft_kit import INCARNATION, CountingDrafter, opening, task

PROMPT = (1, 2, 3)


def make(*drafters: CountingDrafter, **limits: Any) -> DraftWorker:
    offered = drafters or (CountingDrafter(),)
    return DraftWorker(offered, offered[0].name, incarnation=INCARNATION, **limits)


def finish(worker: DraftWorker, now: float = 0.0, drafter: str = "counting") -> list[Answer]:
    batch = worker.plan(drafter, now)
    if batch is None:
        return []
    answers = worker.complete(batch, worker.run(batch, lambda: now), now)
    worker.check_integrity()
    return [*batch.expired, *answers]


def proposed(result: DraftResult | None) -> Proposal:
    assert result is not None
    assert isinstance(result.outcome, Proposal), result
    return result.outcome


def refused(result: DraftResult | None) -> tuple[ResyncReason, int]:
    assert result is not None
    assert isinstance(result.outcome, Resync), result
    return result.outcome.reason, result.outcome.known_len


def ask(worker: DraftWorker, asked: DraftTask, now: float = 0.0) -> DraftResult:
    """Submit and run to the answer."""
    early = worker.submit("r", asked, now)
    if early is not None:
        return early
    ((router, result),) = finish(worker, now)
    assert router == "r"
    return result


def test_a_round_appends_drafts_and_is_repeated_alike() -> None:
    worker = make()
    worker.open(opening(), 0)
    result = ask(worker, task(PROMPT, (4, 5)))
    assert proposed(result) == Proposal((5, 6, 7, 8), "counting", "counting-model")
    assert worker.submit("r", task(PROMPT, (4, 5)), 0) == result
    assert proposed(ask(worker, task((*PROMPT, 4, 5), (6,), round_id=2))).tokens == (6, 7, 8, 9)


def test_a_repetition_while_the_round_waits_is_answered_once_to_the_last_asker() -> None:
    worker = make()
    worker.open(opening(), 0)
    assert worker.submit("r", task(PROMPT), 0) is None
    assert worker.submit("other", task(PROMPT), 0) is None
    assert [router for router, _ in finish(worker)] == ["other"]


@pytest.mark.parametrize(
    ("asked", "reason", "known_len"),
    [
        (task(PROMPT, session_id="x"), ResyncReason.UNKNOWN_SESSION, 0),
        (task(PROMPT, session_id="x", incarnation="old"), ResyncReason.OTHER_INCARNATION, 0),
        (task(PROMPT, incarnation="old"), ResyncReason.OTHER_INCARNATION, 5),
        (task(PROMPT, epoch=1), ResyncReason.STALE_LEASE, 5),
        (task(PROMPT, epoch=3), ResyncReason.UNKNOWN_SESSION, 0),
        (task((1, 2, 3, 4, 5), epoch=2, round_id=8), ResyncReason.OLD_ROUND, 5),
        (task((1, 2, 3, 4, 5), epoch=2, round_id=9), ResyncReason.OLD_ROUND, 5),
        (task((1, 2, 3, 4), epoch=2, round_id=10), ResyncReason.PREFIX_MISMATCH, 5),
        (task((1, 2, 3, 4, 5, 6), (7,), epoch=2, round_id=10), ResyncReason.PREFIX_MISMATCH, 5),
        (task((1, 2, 3), (4, 6), epoch=2, round_id=10), ResyncReason.PREFIX_MISMATCH, 5),
        (task((1, 2, 7, 4, 5), (6,), epoch=2, round_id=10), ResyncReason.PREFIX_MISMATCH, 5),
    ],
)
def test_rounds_that_do_not_fit_are_refused_and_change_nothing(
    asked: DraftTask, reason: ResyncReason, known_len: int
) -> None:
    worker = make()
    worker.open(opening(lease_epoch=2), 0)
    first = ask(worker, task(PROMPT, (4, 5), epoch=2, round_id=9))
    assert proposed(first).tokens
    if asked.fence.round_id == 9:
        asked = replace(asked, fence=replace(asked.fence, prefix_digest=bytes(8)))
    assert refused(worker.submit("r", asked, 0)) == (reason, known_len)
    assert finish(worker) == []
    assert proposed(ask(worker, task((1, 2, 3, 4, 5), (6,), epoch=2, round_id=11))).tokens == (6, 7, 8, 9)


def test_appended_tokens_may_overlap_what_is_known_but_must_end_at_the_base() -> None:
    worker = make()
    worker.open(opening(), 0)
    assert proposed(ask(worker, task((1,), (2, 3, 4)))).tokens == (4, 5, 6, 7)
    short = task((1, 2, 3, 4, 5), round_id=2)
    assert refused(worker.submit("r", replace(short, append_from=4), 0)) == (ResyncReason.PREFIX_MISMATCH, 4)
    long = task((1, 2, 3, 4), (5,), round_id=2)
    assert refused(worker.submit("r", replace(long, appended=(5, 6)), 0)) == (ResyncReason.PREFIX_MISMATCH, 4)


@settings(deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_whatever_arrives_a_round_is_drafted_only_after_the_prefix_it_names(data: st.DataObject, seed: int) -> None:
    """Random, late, repeated, lying tasks: an answer with drafts means that the worker holds exactly that prefix."""
    rng = random.Random(seed)
    worker = make(max_queue=4)
    worker.open(opening(), 0)
    truth = [1, 2, 3]
    sent: list[DraftTask] = []
    for round_id in range(1, data.draw(st.integers(2, 12))):
        new = [rng.randrange(9) for _ in range(rng.randrange(4))]
        asked = task(truth, new, round_id=round_id)
        truth += new
        kind = data.draw(st.sampled_from(["good", "lost", "lie", "again", "overlap"]))
        if kind == "lie" and new:
            asked = replace(asked, appended=(*new[:-1], new[-1] + 1))
        elif kind == "overlap":
            start = rng.randrange(len(truth) + 1)
            asked = replace(asked, append_from=start, appended=tuple(truth[start:]))
        elif kind == "again" and sent:
            asked = rng.choice(sent)
        if kind == "lost":
            continue
        sent.append(asked)
        result = worker.submit("r", asked, 0) or dict(finish(worker)).get("r")
        held = worker._sessions["s"]
        assert held.session.tokens == truth[: held.known_len]
        assert isinstance(result, DraftResult)
        if isinstance(result.outcome, Proposal):
            assert result.fence == asked.fence
            assert held.known_len == asked.fence.base_len
        else:
            assert result.outcome.known_len == held.known_len
        worker.check_integrity()


def test_opening_again_needs_a_larger_epoch_unless_it_is_the_same_opening() -> None:
    worker = make()
    worker.open(opening(lease_epoch=5), 0)
    ask(worker, task(PROMPT, (4,), epoch=5))
    worker.open(opening(lease_epoch=5), 0)  # the call was repeated; the session goes on
    assert proposed(ask(worker, task((*PROMPT, 4), epoch=5, round_id=2))).tokens == (4, 5, 6, 7)
    for late in (opening(lease_epoch=4), opening(lease_epoch=5, tokens=(1, 2)), opening(lease_epoch=5, choice=1)):
        with pytest.raises(StaleLease, match="held under lease epoch 5"):
            worker.open(late, 0)
    worker.open(opening(tokens=(7, 8), lease_epoch=6), 0)
    assert proposed(ask(worker, task((7, 8), epoch=6))).tokens == (2, 3, 4, 5)
    assert worker.sessions == 1


def test_answers_of_sessions_that_changed_meanwhile_are_dropped() -> None:
    drafter = CountingDrafter()
    worker = make(drafter)
    for name in ("released", "reopened", "newer", "kept"):
        worker.open(opening(name), 0)
        worker.submit("r", task(PROMPT, session_id=name), 0)
    batch = worker.plan("counting", 0)
    assert isinstance(batch, Batch)
    outcome = worker.run(batch, lambda: 0.0)
    assert worker.plan("counting", 0) is None  # one batch at a time
    assert worker.release("released", 1)
    worker.open(opening("reopened", lease_epoch=2), 0)
    worker.submit("r", task(PROMPT, (4,), session_id="newer", round_id=2), 0)
    worker.check_integrity()
    answers = worker.complete(batch, outcome, 0)
    assert [result.fence.session_id for _, result in answers] == ["kept"]
    assert [(r.fence.session_id, r.fence.round_id) for _, r in finish(worker)] == [("newer", 2)]
    assert set(drafter.sessions) == {"reopened", "newer", "kept"}
    assert drafter.sessions["reopened"].lease_epoch == 2


def test_a_deadline_that_passed_means_an_empty_answer_without_work() -> None:
    drafter = CountingDrafter()
    worker = make(drafter)
    for name in ("late", "urgent", "patient"):
        worker.open(opening(name), 0)
    worker.submit("r", task(PROMPT, session_id="late", deadline_us=1_000), 10.0)
    worker.submit("r", task(PROMPT, session_id="urgent", deadline_us=50_000), 10.0)
    worker.submit("r", task(PROMPT, session_id="patient"), 10.0)
    answers = {result.fence.session_id: proposed(result) for _, result in finish(worker, 10.01)}
    assert {name: len(proposal.tokens) for name, proposal in answers.items()} == {"late": 0, "urgent": 4, "patient": 4}
    assert answers["late"].proposer_model_id == "counting-model"
    (batch,) = drafter.batches
    assert [each.session_id for each in batch] == ["urgent", "patient"]
    assert batch[0].budget_s == pytest.approx(0.04)


def test_timing_tells_queue_step_and_residence() -> None:
    worker = make()
    worker.open(opening(), 0)
    worker.submit("r", task(PROMPT), 1.0)
    batch = worker.plan("counting", 1.5)
    assert batch is not None
    clock = iter([2.0, 2.25])
    ((_, result),) = worker.complete(batch, worker.run(batch, lambda: next(clock)), 2.5)
    assert result.timing == Timing(queue_us=1_000_000, step_us=250_000, residence_us=1_500_000)


def test_each_drafter_has_a_lane_and_unknown_ones_are_named() -> None:
    fast, slow = CountingDrafter("fast"), CountingDrafter("slow")
    worker = make(fast, slow)
    worker.open(opening("a"), 0)
    worker.open(opening("b", drafter="slow"), 0)
    for name in ("a", "b"):
        worker.submit("r", task(PROMPT, session_id=name), 0)
    running = worker.plan("slow", 0)
    assert running is not None
    assert [result.fence.session_id for _, result in finish(worker, drafter="fast")] == ["a"]
    with pytest.raises(InvalidRequest, match=r"drafter: expected a drafter offered here \(fast, slow\), got 'eagle'"):
        worker.open(opening("c", drafter="eagle"), 0)
    worker.open(opening("b", lease_epoch=2, drafter="fast"), 0)  # changes lanes
    worker.check_integrity()
    assert worker.complete(running, None, 0) == []
    finish(worker, drafter="slow")
    finish(worker, drafter="fast")
    assert (set(fast.sessions), set(slow.sessions)) == ({"a", "b"}, set())
    with pytest.raises(InvalidRequest, match="default_drafter"):
        DraftWorker([fast], "slow", incarnation=INCARNATION)
    with pytest.raises(InvalidRequest, match="drafters: expected different names"):
        DraftWorker([fast, fast], "fast", incarnation=INCARNATION)


def test_a_drafter_that_fails_gives_empty_answers() -> None:
    worker = make()
    worker.open(opening(), 0)
    worker.submit("r", task(PROMPT), 0)
    batch = worker.plan("counting", 0)
    assert batch is not None
    ((_, result),) = worker.complete(batch, None, 0)
    assert proposed(result) == Proposal((), "counting", "counting-model")


def test_bounds() -> None:
    worker = make(max_sessions=2, max_queue=1, max_draft_tokens=3)
    worker.open(opening("a"), 0)
    worker.open(opening("b", sampling=SamplingParams(max_tokens=3)), 0)
    with pytest.raises(Overloaded, match="2 sessions are open; retry after 1 s"):
        worker.open(opening("c"), 0)
    assert worker.submit("r", task(PROMPT, session_id="a", k=9), 0) is None
    assert proposed(worker.submit("r", task(PROMPT, session_id="b"), 0)).tokens == ()  # the queue is full
    ((_, result),) = finish(worker)
    assert len(proposed(result).tokens) == 3
    assert len(proposed(ask(worker, task(PROMPT, session_id="b", round_id=2))).tokens) == 2  # the third is the bonus
    assert proposed(ask(worker, task(PROMPT, (4, 5), session_id="b", round_id=3))).tokens == ()
    beyond = task((*PROMPT, 4, 5), (6, 7), session_id="b", round_id=4)
    assert refused(worker.submit("r", beyond, 0)) == (ResyncReason.PREFIX_MISMATCH, 5)


def test_sessions_end_by_release_router_and_age() -> None:
    drafter = CountingDrafter()
    worker = make(drafter, session_ttl_s=10)
    for name, router in (("a", "r1"), ("b", "r1"), ("c", "r2"), ("d", "r2")):
        worker.open(opening(name, router_id=router, lease_epoch=2), 0)
    finish(worker)
    assert not worker.release("a", 1)  # an older lease's
    assert not worker.release("x", 9)
    assert worker.release("a", 2)
    assert worker.drop_router("r1") == 1
    worker.submit("r2", task(PROMPT, session_id="c", epoch=2), 9)
    assert worker.expire(11) == 1
    assert worker.sessions == 1
    finish(worker)
    assert set(drafter.sessions) == {"c"}


def test_a_session_that_came_and_went_unseen_is_never_mentioned_to_the_drafter() -> None:
    worker = make()
    worker.open(opening(), 0)
    assert worker.release("s", 1)
    assert worker.plan("counting", 0) is None
