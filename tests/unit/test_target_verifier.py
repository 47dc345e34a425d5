"""The verifier, operation by operation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paceline.speculation.errors import InvalidRequest, Overloaded, StaleLease, Unavailable
from paceline.speculation.messages import (
    NO_TRACE,
    Finish,
    FinishReason,
    Resync,
    ResyncReason,
    TokenSource,
    Trace,
    Verdict,
)
from paceline.target.sessions import Limits

from tests.unit.target_kit import (
    EOS,
    STEP_S,
    VOCAB,
    ScriptedEngine,
    make_verifier,
    opening,
    plain,
    run_step,
    task,
    verdict_of,
)

S1 = opening()
ANSWER = plain(S1)[0]  # what the target writes alone
WRONG = tuple((token + 1) % VOCAB for token in ANSWER)


def test_a_round_without_draft_commits_the_targets_token() -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    assert verifier.submit("r1", task(S1), 1.0) is None
    verdict = verdict_of(run_step(verifier, engine, 3.0))
    assert (verdict.tokens, verdict.sources) == (ANSWER[:1], (TokenSource.TARGET_ONLY,))
    assert (verdict.verify_len, verdict.accepted, verdict.verifier_model_id) == (0, 0, "scripted")


@pytest.mark.parametrize(
    ("drafts", "committed", "accepted", "last"),
    [
        (ANSWER[:3], 4, 3, TokenSource.BONUS),
        ((*ANSWER[:2], WRONG[2]), 3, 2, TokenSource.CORRECTED),
        ((WRONG[0], *ANSWER[1:3]), 1, 0, TokenSource.CORRECTED),
    ],
)
def test_what_agrees_is_accepted(drafts: tuple[int, ...], committed: int, accepted: int, last: TokenSource) -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    verifier.submit("r1", task(S1, drafts=drafts), 0.0)
    verdict = verdict_of(run_step(verifier, engine))
    assert verdict.tokens == ANSWER[:committed]
    assert verdict.sources == (TokenSource.ACCEPTED,) * accepted + (last,)
    assert (verdict.verify_len, verdict.accepted) == (3, accepted)
    assert verifier.tokens("s1") == (*S1.tokens, *ANSWER[:committed])


def test_the_next_round_feeds_only_what_is_new() -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    verifier.submit("r1", task(S1, drafts=(*ANSWER[:2], WRONG[2])), 0.0)
    run_step(verifier, engine)
    verifier.submit("r1", task(S1, ANSWER[:3], ANSWER[3:4], round_id=2), 0.0)
    assert verdict_of(run_step(verifier, engine)).tokens == ANSWER[3:5]
    piece = engine.plans[-1].slices[0]
    assert (piece.start, piece.tokens, piece.samples) == (5, ANSWER[2:4], 2)


def test_times_are_told_apart() -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    verifier.submit("r1", task(S1), 1.0)
    plan = verifier.plan(1.5)
    assert plan is not None
    (served,) = verifier.complete(plan, engine.step(plan), 2.0)
    assert served.result is not None
    timing = served.result.timing
    assert (timing.queue_us, timing.step_us, timing.residence_us) == (500_000, STEP_S * 1e6, 1_000_000)


def test_a_step_is_told_to_tracing() -> None:
    verifier, engine = make_verifier(step_tokens=2)
    verifier.open(replace(S1, request_id="q", tenant="t"), 0.0)
    verifier.submit("r1", task(S1, drafts=ANSWER[:1]), 0.0)
    spans = []
    for _ in range(2):
        plan = verifier.plan(0.0)
        assert plan is not None
        spans += [served.span for served in verifier.complete(plan, engine.step(plan), 0.0)]
    assert [(s.trace, s.session_id, s.request_id, s.tenant, s.round_id) for s in spans] == [
        (Trace("00-1"), "s1", "q", "t", 1)
    ] * 2
    assert [(s.rows, s.verify_len, s.accepted, s.tokens) for s in spans] == [(2, 0, 0, ()), (2, 1, 1, ANSWER[:2])]


def test_a_prompt_longer_than_a_step_is_fed_in_chunks() -> None:
    verifier, engine = make_verifier(step_tokens=4)
    long = opening(tokens=tuple(i % VOCAB for i in range(10)))
    verifier.open(long, 0.0)
    verifier.submit("r1", task(long), 0.0)
    assert run_step(verifier, engine) == run_step(verifier, engine) == []
    assert verdict_of(run_step(verifier, engine)).tokens == plain(long)[0][:1]
    assert [(p.slices[0].start, p.rows, p.slices[0].samples) for p in engine.plans] == [(0, 4, 0), (4, 4, 0), (8, 2, 1)]


def test_drafts_are_clipped_to_what_can_be_committed() -> None:
    verifier, engine = make_verifier(max_draft_tokens=2)
    short = opening(max_tokens=5)
    verifier.open(short, 0.0)
    verifier.submit("r1", task(short, drafts=ANSWER[:5]), 0.0)
    assert verdict_of(run_step(verifier, engine)).verify_len == 2  # max_draft_tokens
    verifier.submit("r1", task(short, ANSWER[:3], ANSWER[3:8], round_id=2), 0.0)
    verdict = verdict_of(run_step(verifier, engine))
    assert (verdict.verify_len, verdict.tokens) == (1, ANSWER[3:5])  # two tokens remain, one of them the bonus
    assert verdict.finish == Finish(FinishReason.LENGTH)


def test_a_draft_token_the_target_does_not_know_ends_the_draft() -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    verifier.submit("r1", task(S1, drafts=(ANSWER[0], VOCAB, ANSWER[2])), 0.0)
    verdict = verdict_of(run_step(verifier, engine))
    assert (verdict.verify_len, verdict.tokens) == (1, ANSWER[:2])


def test_tokens_past_a_stop_are_never_committed_though_they_agreed() -> None:
    verifier, engine = make_verifier()
    source = opening(stop_token_ids=(ANSWER[1],))
    assert ANSWER[0] != ANSWER[1]
    verifier.open(source, 0.0)
    verifier.submit("r1", task(source, drafts=ANSWER[:4]), 0.0)
    verdict = verdict_of(run_step(verifier, engine))
    assert (verdict.tokens, verdict.sources) == (ANSWER[:2], (TokenSource.ACCEPTED,) * 2)
    assert (verdict.verify_len, verdict.accepted) == (4, 4)
    assert verdict.finish == Finish(FinishReason.STOP, stop_token_id=ANSWER[1])


def test_after_the_end_a_round_gets_the_end_again() -> None:
    verifier, engine = make_verifier()
    source = opening(max_tokens=1)
    verifier.open(source, 0.0)
    verifier.submit("r1", task(source), 0.0)
    verdict = verdict_of(run_step(verifier, engine))
    repeated = verifier.submit("r1", task(source), 0.0)
    assert repeated is not None
    assert repeated.outcome == verdict
    later = verifier.submit("r1", task(source, verdict.tokens, round_id=2), 0.0)
    assert later is not None
    assert later.outcome == Verdict((), (), 0, 0, finish=verdict.finish, verifier_model_id="scripted")


def test_a_session_opened_at_its_end_is_finished() -> None:
    verifier, _ = make_verifier()
    source = opening(committed=(0, EOS), ignore_eos=False)
    verifier.open(source, 0.0)
    answer = verifier.submit("r1", task(source), 0.0)
    assert answer is not None
    assert isinstance(answer.outcome, Verdict)
    assert answer.outcome.finish == Finish(FinishReason.STOP, stop_token_id=EOS)


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


def test_a_newer_lease_takes_over_with_the_kv_state() -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    verifier.submit("r1", task(S1, drafts=ANSWER[:3]), 0.0)
    run_step(verifier, engine)
    verifier.submit("r1", task(S1, ANSWER[:4], round_id=2), 0.0)
    moved = replace(S1, lease_epoch=2, router_id="r2", tokens=(*S1.tokens, *ANSWER[:4]))
    verifier.open(moved, 0.0)
    verifier.check_integrity()
    assert verifier.waiting == 0
    verifier.submit("r2", task(moved, drafts=ANSWER[4:5]), 0.0)
    assert verdict_of(run_step(verifier, engine)).tokens == ANSWER[4:6]
    assert engine.plans[-1].slices[0].start == 6


def test_a_newer_lease_with_fewer_tokens_keeps_the_common_prefix() -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    verifier.submit("r1", task(S1, drafts=ANSWER[:3]), 0.0)
    run_step(verifier, engine)
    back = replace(S1, lease_epoch=2, tokens=(*S1.tokens, ANSWER[0]))
    verifier.open(back, 0.0)
    verifier.submit("r1", task(back), 0.0)
    assert verdict_of(run_step(verifier, engine)).tokens == ANSWER[1:2]
    assert engine.plans[-1].slices[0].start == 3


def test_a_newer_lease_with_other_tokens_feeds_them() -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    verifier.submit("r1", task(S1, drafts=ANSWER[:3]), 0.0)
    run_step(verifier, engine)
    other = replace(S1, lease_epoch=2, tokens=(S1.tokens[0], WRONG[0], *S1.tokens[2:], *ANSWER[:2]))
    assert WRONG[0] != S1.tokens[1]
    verifier.open(other, 0.0)
    verifier.submit("r1", task(other), 0.0)
    run_step(verifier, engine)
    assert engine.plans[-1].slices[0].start == 1
    assert tuple(engine.held["s1"]) == other.tokens


def test_opening_again() -> None:
    verifier, _ = make_verifier()
    verifier.open(replace(S1, lease_epoch=2), 0.0)
    verifier.open(replace(S1, lease_epoch=2, trace=Trace("00-retry")), 1.0)
    assert S1.trace == NO_TRACE
    with pytest.raises(StaleLease, match="lease epoch 2"):
        verifier.open(replace(S1, lease_epoch=1), 0.0)
    with pytest.raises(StaleLease, match="another content"):
        verifier.open(replace(S1, lease_epoch=2, router_id="r2"), 0.0)
    assert verifier.sessions == 1


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        (opening(tokens=(1,) * 64), InvalidRequest, "prompt_len: expected at most 63"),
        (opening(tokens=(1, VOCAB)), InvalidRequest, f"tokens: expected token ids below {VOCAB}"),
        (opening(committed=(1,) * 3, max_tokens=2), InvalidRequest, "nothing after the answer's end"),
        (opening(max_tokens=60), InvalidRequest, "max_tokens: expected prompt and answer within the 32 tokens"),
        (opening(numerics_class="class-b"), Unavailable, "class-b, this target is of class-a"),
    ],
)
def test_what_can_not_run_here_is_refused(source: object, error: type[Exception], match: str) -> None:
    verifier, _ = make_verifier(ScriptedEngine(kv_tokens=32))
    with pytest.raises(error, match=match):
        verifier.open(source, 0.0)  # type: ignore[arg-type]
    assert verifier.sessions == 0
    verifier.open(opening(numerics_class="class-a"), 0.0)


def test_kv_space_is_never_promised_twice() -> None:
    verifier, engine = make_verifier(ScriptedEngine(kv_tokens=30))
    verifier.open(opening("s1", max_tokens=10), 0.0)
    verifier.open(opening("s2", max_tokens=10), 0.0)
    with pytest.raises(Overloaded, match="no KV space for 13 tokens") as refused:
        verifier.open(opening("s3", max_tokens=10), 0.0)
    assert refused.value.retry_after_s > 0
    assert engine.reserved == {"s1": 13, "s2": 13}
    assert verifier.release("s1", 1)
    verifier.open(opening("s3", max_tokens=10), 0.0)
    verifier.check_integrity()


def test_sessions_are_bounded_and_so_is_the_queue() -> None:
    verifier, _ = make_verifier(max_sessions=5, max_queue=2)
    verifier.open(opening("s1"), 0.0)
    verifier.open(opening("s2"), 0.0)
    with pytest.raises(Overloaded, match="holds 2 sessions"):
        verifier.open(opening("s3"), 0.0)
    verifier.open(opening("s2", lease_epoch=2), 0.0)


def test_a_step_needs_a_row_for_each_kind_of_round() -> None:
    with pytest.raises(InvalidRequest, match="step_tokens: expected 2 or more"):
        Limits(step_tokens=1)


def test_release_needs_the_lease() -> None:
    verifier, engine = make_verifier()
    verifier.open(replace(S1, lease_epoch=3), 0.0)
    assert not verifier.release("s1", 2)
    assert not verifier.release("other", 3)
    assert verifier.release("s1", 3)
    assert (verifier.sessions, engine.reserved) == (0, {})


def test_a_routers_end_releases_its_sessions_only() -> None:
    verifier, engine = make_verifier()
    for name, router in (("s1", "r1"), ("s2", "r2"), ("s3", "r1")):
        source = opening(name, router_id=router)
        verifier.open(source, 0.0)
        verifier.submit(router, task(source), 0.0)
    assert verifier.drop_router("r1") == 2
    verifier.check_integrity()
    assert [result.fence.session_id for result in run_step(verifier, engine)] == ["s2"]


def test_sessions_nobody_asks_about_expire() -> None:
    verifier, engine = make_verifier(session_ttl_s=10)
    for name in ("idle", "asked", "waiting"):
        verifier.open(opening(name), 0.0)
    verifier.submit("r1", task(opening("waiting")), 0.0)
    verifier.submit("r1", task(opening("asked"), (5,)), 5.0)
    assert verifier.expire(10.0) == 0
    assert verifier.expire(11.0) == 1
    assert set(engine.reserved) == {"asked", "waiting"}


def test_what_is_released_during_its_step_is_freed_after_it() -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    verifier.submit("r1", task(S1), 0.0)
    plan = verifier.plan(0.0)
    assert plan is not None
    verifier.release("s1", 1)
    verifier.check_integrity()
    assert "s1" in engine.held
    (served,) = verifier.complete(plan, engine.step(plan), 0.0)
    assert (served.result, engine.held) == (None, {})
    verifier.check_integrity()


@pytest.mark.parametrize("released", [False, True])
def test_what_is_taken_over_during_its_step_gets_nothing_of_it(released: bool) -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    verifier.submit("r1", task(S1, drafts=WRONG[:3]), 0.0)
    plan = verifier.plan(0.0)
    assert plan is not None
    if released:
        verifier.release("s1", 1)
    other = replace(S1, lease_epoch=2, tokens=(1, 2, 4))
    verifier.open(other, 0.0)
    verifier.submit("r1", task(other), 0.0)
    verifier.check_integrity()
    with pytest.raises(Overloaded, match="in a step and can't grow"):
        verifier.open(replace(other, lease_epoch=3, sampling=opening(max_tokens=40).sampling), 0.0)
    (served,) = verifier.complete(plan, engine.step(plan), 0.0)
    assert served.result is None
    verifier.check_integrity()
    assert verdict_of(run_step(verifier, engine)).tokens == plain(other)[0][:1]


def test_a_broken_step_costs_its_sessions_only() -> None:
    verifier, engine = make_verifier(step_tokens=2)
    first, second, third = (opening(name, tokens=(1,)) for name in ("s1", "s2", "s3"))
    for source in (first, second, third):
        verifier.open(source, 0.0)
        verifier.submit("r1", task(source), 0.0)
    plan = verifier.plan(0.0)
    assert plan is not None
    verifier.release("s2", 1)
    served = verifier.fail(plan, 0.0)
    verifier.check_integrity()
    assert [each.result and each.result.outcome for each in served] == [Resync(ResyncReason.UNKNOWN_SESSION), None]
    assert set(engine.held) == {"s3"}
    assert verdict_of(run_step(verifier, engine)).tokens == plain(third)[0][:1]
    verifier.open(first, 0.0)


def test_steps_end_in_order() -> None:
    verifier, engine = make_verifier()
    verifier.open(S1, 0.0)
    verifier.submit("r1", task(S1), 0.0)
    plan = verifier.plan(0.0)
    assert plan is not None
    with pytest.raises(AssertionError, match="under way"):
        verifier.plan(0.0)
    with pytest.raises(AssertionError, match="under way"):
        verifier.complete(replace(plan, step_id=9), engine.step(plan), 0.0)
