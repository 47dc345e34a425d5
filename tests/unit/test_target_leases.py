"""Sessions opened, opened again, refused, released and expired."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paceline.speculation.errors import InvalidRequest, Overloaded, StaleLease, Unavailable
from paceline.speculation.messages import (
    NO_TRACE,
    Trace,
)
from paceline.target.sessions import Limits

from tests.unit.target_answers import ANSWER, S1, WRONG
from tests.unit.target_kit import (
    VOCAB,
    ScriptedEngine,
    make_verifier,
    opening,
    plain,
    run_step,
    task,
    verdict_of,
)


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
    assert engine.held["s1"] == other.tokens


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
    verifier, engine = make_verifier(ScriptedEngine(kv_tokens=32))
    verifier.open(opening("s1", max_tokens=10), 0.0)
    verifier.open(opening("s2", max_tokens=10), 0.0)
    with pytest.raises(Overloaded, match="no KV space for 13 tokens") as refused:
        verifier.open(opening("s3", max_tokens=10), 0.0)
    assert refused.value.retry_after_s > 0
    assert engine.reserved == {"s1": 13, "s2": 13}
    assert verifier.release("s1", 1)
    verifier.open(opening("s3", max_tokens=10), 0.0)
    verifier.check_integrity()
    engine.table.check_integrity()


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
    with pytest.raises(Overloaded, match="in a step and can't change"):
        verifier.open(replace(other, lease_epoch=3, sampling=opening(max_tokens=40).sampling), 0.0)
    (served,) = verifier.complete(plan, engine.step(plan), 0.0)
    assert served.result is None
    verifier.check_integrity()
    assert verdict_of(run_step(verifier, engine)).tokens == plain(other)[0][:1]
