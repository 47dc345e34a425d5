"""The verifier, operation by operation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paceline.speculation.messages import (
    Finish,
    FinishReason,
    Resync,
    ResyncReason,
    TokenSource,
    Trace,
    Verdict,
)

from tests.unit.target_answers import ANSWER, S1, WRONG
from tests.unit.target_kit import (
    EOS,
    STEP_S,
    VOCAB,
    make_verifier,
    opening,
    plain,
    run_step,
    task,
    verdict_of,
)


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
