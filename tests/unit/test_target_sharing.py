"""Sessions of one tenant start where others have computed the same tokens; and write the same answers as alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paceline.speculation.errors import Overloaded
from paceline.speculation.messages import SessionOpen
from paceline.target.verifier import Served, Verifier

from tests.unit.target_kit import VOCAB, ScriptedEngine, make_verifier, opening, plain, task

PROMPT = tuple((5 * place + place // 7) % VOCAB for place in range(40))


def one_round(verifier: Verifier, engine: ScriptedEngine, source: SessionOpen) -> Served:
    """Open a session and serve its first round."""
    verifier.open(source, 0.0)
    verifier.submit(source.router_id, task(source), 0.0)
    while (plan := verifier.plan(0.0)) is not None:
        served = verifier.complete(plan, engine.step(plan), 0.0)
        verifier.check_integrity()
        engine.table.check_integrity()
    (last,) = served
    assert last.result is not None
    assert last.result.outcome.tokens == plain(source)[0][:1]  # type: ignore[union-attr]
    return last


def starts(engine: ScriptedEngine) -> dict[str, int]:
    """Where each session's first slice began."""
    found: dict[str, int] = {}
    for plan in engine.plans:
        for piece in plan.slices:
            found.setdefault(piece.session_id, piece.start)
    return found


def test_a_prompt_is_computed_once() -> None:
    verifier, engine = make_verifier()
    assert one_round(verifier, engine, opening("a", PROMPT)).span.reused == 0
    assert one_round(verifier, engine, opening("b", (*PROMPT[:35], 1, 2))).span.reused == 32
    assert verifier.release("a", 1)
    assert verifier.release("b", 1)
    assert one_round(verifier, engine, opening("c", PROMPT, choice=3)).span.reused == 32
    assert starts(engine) == {"a": 0, "b": 32, "c": 32}


def test_what_a_session_committed_is_shared_as_well() -> None:
    verifier, engine = make_verifier()
    first = opening("a", PROMPT, max_tokens=20)
    answer = plain(first)[0]
    verifier.open(first, 0.0)
    verifier.submit("r1", task(first, drafts=answer[:12]), 0.0)
    plan = verifier.plan(0.0)
    assert plan is not None
    verifier.complete(plan, engine.step(plan), 0.0)
    assert one_round(verifier, engine, opening("b", (*PROMPT, *answer[:10], 3))).span.reused == 48


def test_a_prompt_in_chunks_is_shared_before_it_is_through() -> None:
    verifier, engine = make_verifier(step_tokens=20)
    verifier.open(opening("a", PROMPT), 0.0)
    verifier.submit("r1", task(opening("a", PROMPT)), 0.0)
    plan = verifier.plan(0.0)
    assert plan is not None
    verifier.complete(plan, engine.step(plan), 0.0)
    verifier.open(opening("b", PROMPT), 0.0)
    verifier.submit("r1", task(opening("b", PROMPT)), 0.0)
    plan = verifier.plan(0.0)
    assert plan is not None
    assert {piece.session_id: piece.start for piece in plan.slices} == {"a": 20, "b": 16}


def test_tenants_do_not_share() -> None:
    verifier, engine = make_verifier()
    one_round(verifier, engine, opening("a", PROMPT, tenant="x"))
    assert one_round(verifier, engine, opening("b", PROMPT, tenant="y")).span.reused == 0
    assert one_round(verifier, engine, opening("c", PROMPT, tenant="x")).span.reused == 32


def test_sharing_can_be_turned_off() -> None:
    verifier, engine = make_verifier(share_prefixes=False)
    one_round(verifier, engine, opening("a", PROMPT))
    assert one_round(verifier, engine, opening("b", PROMPT)).span.reused == 0


def test_a_rejected_draft_is_not_shared() -> None:
    verifier, engine = make_verifier()
    first = opening("a", PROMPT[:30], max_tokens=20)
    wrong = tuple((token + 1) % VOCAB for token in plain(first)[0][:6])
    verifier.open(first, 0.0)
    verifier.submit("r1", task(first, drafts=wrong), 0.0)
    plan = verifier.plan(0.0)
    assert plan is not None
    assert plan.slices[0].end == 36
    verifier.complete(plan, engine.step(plan), 0.0)
    assert one_round(verifier, engine, opening("b", (*PROMPT[:30], *wrong))).span.reused == 16


def test_a_step_that_failed_leaves_nothing_to_share() -> None:
    verifier, engine = make_verifier()
    first = opening("a", PROMPT)
    one_round(verifier, engine, first)
    verifier.submit("r1", task(first, plain(first)[0][:1], round_id=2), 0.0)
    plan = verifier.plan(0.0)
    assert plan is not None
    verifier.fail(plan, 0.0)
    assert one_round(verifier, engine, opening("b", PROMPT)).span.reused == 0


def test_a_prompt_whose_log_probabilities_are_wanted_is_computed() -> None:
    verifier, engine = make_verifier()
    first = opening("a", PROMPT)
    one_round(verifier, engine, first)
    wanted = replace(first, session_id="b", sampling=replace(first.sampling, prompt_logprobs=0))
    verifier.open(wanted, 0.0)
    verifier.submit("r1", task(wanted), 0.0)
    plan = verifier.plan(0.0)
    assert plan is not None
    assert plan.slices[0].start == 0


def test_a_newer_lease_far_back_starts_over_on_what_is_published() -> None:
    verifier, engine = make_verifier()
    first = opening("a", PROMPT)
    one_round(verifier, engine, first)
    one_round(verifier, engine, opening("a", (*PROMPT[:20], 7), lease_epoch=2))
    assert engine.plans[-1].slices[0].start == 16
    one_round(verifier, engine, opening("a", PROMPT, lease_epoch=3))
    assert engine.plans[-1].slices[0].start == 32


def test_a_newer_lease_far_back_waits_for_the_step() -> None:
    verifier, engine = make_verifier()
    first = opening("a", PROMPT)
    one_round(verifier, engine, first)
    verifier.submit("r1", task(first, plain(first)[0][:1], round_id=2), 0.0)
    plan = verifier.plan(0.0)
    assert plan is not None
    back = opening("a", PROMPT[:20], lease_epoch=2)
    with pytest.raises(Overloaded, match="in a step and can't change") as refused:
        verifier.open(back, 0.0)
    assert 0 < refused.value.retry_after_s < 1
    verifier.complete(plan, engine.step(plan), 0.0)
    one_round(verifier, engine, back)
    assert engine.plans[-1].slices[0].start == 16


def test_shared_pages_count_once_in_the_budget() -> None:
    verifier, engine = make_verifier(ScriptedEngine(kv_tokens=5 * 16))
    one_round(verifier, engine, opening("a", PROMPT, max_tokens=8))
    one_round(verifier, engine, opening("b", PROMPT, max_tokens=8))
    one_round(verifier, engine, opening("c", PROMPT, max_tokens=8))
    with pytest.raises(Overloaded, match="no KV space for 48 tokens"):
        verifier.open(opening("d", PROMPT, max_tokens=8), 0.0)
