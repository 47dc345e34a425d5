"""The model drafter over a fake engine: same tokens as the model alone, and no row computed twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.drafters.interface import Ask, DraftSession
from paceline.drafters.model import ModelDrafter
from paceline.drafters.pace import Pace
from paceline.engine.fake import FakeEngine, FakeOptions
from paceline.engine.interface import Slice, StepPlan
from paceline.speculation.params import SamplingParams

from tests.unit.draft_kit import SAMPLED, RecordingEngine, session

OPTIONS = FakeOptions(vocab_size=64)


def plain(held: DraftSession, count: int, options: FakeOptions = OPTIONS) -> list[int]:
    """The model's own text, one token a step."""
    engine = FakeEngine(options, sleep=None)
    assert engine.reserve("plain", 4096)
    tokens = list(held.tokens)
    for step in range(count):
        piece = Slice("plain", 0, tuple(tokens), 1, held.sampling, held.prompt_len, held.choice)
        tokens += engine.step(StepPlan(step, (piece,))).samples[0]
    return tokens[len(held.tokens) :]


def propose(drafter: ModelDrafter, held: DraftSession, count: int) -> list[int]:
    (proposal,) = drafter.propose([Ask(held.session_id, len(held.tokens), count)])
    assert (proposal.drafter, proposal.proposer_model_id) == ("model", "small")
    return list(proposal.tokens)


def test_drafts_are_what_the_model_would_write_with_the_same_seed() -> None:
    engine = RecordingEngine(OPTIONS)
    drafter = ModelDrafter(engine)
    held = session(tokens=[5, 6, 7, 8], sampling=SAMPLED, choice=3, prompt_len=3)
    drafter.open(held)
    text = plain(held, 10)
    assert propose(drafter, held, 4) == text[:4]
    held.tokens.extend(text[:5])
    assert propose(drafter, held, 4) == text[5:9]
    assert [len(plan.slices) for plan in engine.plans] == [1] * 8


@pytest.mark.parametrize("accepted", [0, 2, 3, 4])
def test_only_what_differs_from_the_drafts_is_computed_again(accepted: int) -> None:
    engine = RecordingEngine(OPTIONS)
    drafter = ModelDrafter(engine)
    held = session(tokens=list(range(20)), sampling=SAMPLED)
    drafter.open(held)
    drafts = propose(drafter, held, 4)
    assert engine.rows == 20 + 3
    held.tokens.extend([*drafts[:accepted], (drafts[accepted] + 1) % 60 if accepted < 4 else 9])
    propose(drafter, held, 4)
    catch_up = 2 if accepted == 4 else 1  # the last draft was never fed to the model
    assert engine.rows == 23 + catch_up + 3
    engine.check_integrity()


@settings(deadline=None, max_examples=25)
@given(
    prompts=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=40), min_size=1, max_size=5),
    accepts=st.lists(st.integers(0, 4), min_size=1, max_size=4),
)
def test_a_batch_drafts_what_each_session_drafts_alone(prompts: list[list[int]], accepts: list[int]) -> None:
    drafter = ModelDrafter(RecordingEngine(OPTIONS))
    sessions = [session(f"s{i}", prompt, sampling=SAMPLED, choice=i) for i, prompt in enumerate(prompts)]
    for held in sessions:
        drafter.open(held)
    for accept in accepts:
        proposals = drafter.propose([Ask(held.session_id, len(held.tokens), 4) for held in sessions])
        for held, proposal in zip(sessions, proposals, strict=True):
            assert list(proposal.tokens) == plain(held, 4)
            held.tokens.extend([*proposal.tokens[:accept], 1])


def test_a_long_prompt_catches_up_over_several_calls_and_delays_nobody() -> None:
    engine = RecordingEngine(OPTIONS)
    drafter = ModelDrafter(engine, step_tokens=16)
    short = session("short", [1, 2, 3], sampling=SAMPLED)
    long = session("long", [n % 60 for n in range(130)], sampling=SAMPLED)
    drafter.open(short)
    drafter.open(long)
    asks = [Ask("long", 130, 4), Ask("short", 3, 4)]
    first = drafter.propose(asks)
    assert [len(proposal.tokens) for proposal in first] == [0, 4]
    assert len(engine.plans) == 4
    assert all(plan.rows <= 16 for plan in engine.plans)
    assert len(engine.held("long")) == 13 + 15 * 3
    second = drafter.propose([asks[0]])
    third = drafter.propose([asks[0]])
    assert second[0].tokens == ()
    assert third[0].tokens == tuple(plain(long, 4))[: len(third[0].tokens)] != ()


def test_drafting_stops_after_an_end() -> None:
    ending = FakeOptions(vocab_size=64, eos=1.0)
    drafter = ModelDrafter(RecordingEngine(ending))
    held = session(sampling=SamplingParams(temperature=0))
    drafter.open(held)
    assert propose(drafter, held, 4) == [ending.eos_token_id]
    going_on = session("on", sampling=SamplingParams(temperature=0, ignore_eos=True))
    drafter.open(going_on)
    assert propose(drafter, going_on, 3) == [ending.eos_token_id] * 3
    stopped = session("stop", sampling=SamplingParams(temperature=0, ignore_eos=True, stop_token_ids=(63,)))
    drafter.open(stopped)
    assert propose(drafter, stopped, 3) == [63]


def test_idle_sessions_make_room_least_recently_used_first() -> None:
    engine = RecordingEngine(OPTIONS, kv_tokens=192)
    drafter = ModelDrafter(engine)
    held = {name: session(name, [1, 2, 3, 4], sampling=SAMPLED) for name in "abcd"}
    for each in held.values():
        drafter.open(each)
        assert len(propose(drafter, each, 4)) == 4
    assert {name for name in held if engine.held(name)} == {"b", "c", "d"}
    text = plain(held["a"], 4)
    assert propose(drafter, held["a"], 4) == text
    assert {name for name in held if engine.held(name)} == {"c", "d", "a"}


def test_what_does_not_fit_beside_the_batch_gets_no_draft() -> None:
    engine = RecordingEngine(OPTIONS, kv_tokens=128)
    drafter = ModelDrafter(engine)
    for name in "abc":
        drafter.open(session(name, [1, 2, 3], sampling=SAMPLED))
    proposals = drafter.propose([Ask(name, 3, 4) for name in "abc"])
    assert [len(proposal.tokens) for proposal in proposals] == [4, 4, 0]
    for name in "abc":
        drafter.close(name)
    assert engine.held("a") == ()
    assert engine.reserve("z", 128)


def test_a_new_lease_of_the_same_text_keeps_what_was_computed() -> None:
    engine = RecordingEngine(OPTIONS)
    drafter = ModelDrafter(engine)
    held = session(tokens=list(range(30)), sampling=SAMPLED)
    drafter.open(held)
    drafts = propose(drafter, held, 4)
    before = engine.rows
    again = session(tokens=[*range(30), *drafts[:2], 5], prompt_len=30, sampling=SAMPLED, lease_epoch=2)
    drafter.open(again)
    assert propose(drafter, again, 4) == plain(again, 4)
    assert engine.rows - before == 1 + 3
    other = session(tokens=[*range(10), 63], sampling=SAMPLED, lease_epoch=3)
    drafter.open(other)
    assert propose(drafter, other, 2) == plain(other, 2)


def test_text_the_model_cannot_read_gets_no_draft() -> None:
    engine = RecordingEngine(OPTIONS)
    drafter = ModelDrafter(engine)
    drafter.open(session("foreign", [1, 64]))
    drafter.open(session("long", [1] * (engine.info.context_length - 2)))
    drafter.open(session("longer", [1] * (engine.info.context_length + 5)))
    foreign, longer = drafter.propose([Ask("foreign", 2, 4), Ask("longer", engine.info.context_length + 5, 4)])
    assert (foreign.tokens, longer.tokens) == ((), ())
    assert engine.plans == []


def test_a_context_that_ends_cuts_the_draft() -> None:
    engine = RecordingEngine(OPTIONS)
    drafter = ModelDrafter(engine, step_tokens=40_000)
    length = engine.info.context_length - 2
    drafter.open(session("long", [1] * length, sampling=SAMPLED))
    assert len(drafter.propose([Ask("long", length, 4)])[0].tokens) == 2


def test_after_an_engine_error_nothing_is_believed_to_be_held() -> None:
    engine = RecordingEngine(OPTIONS)
    drafter = ModelDrafter(engine)
    held = session(sampling=SAMPLED)
    drafter.open(held)
    propose(drafter, held, 2)
    engine.broken = True
    with pytest.raises(RuntimeError, match="the engine broke"):
        propose(drafter, held, 2)
    engine.broken = False
    assert propose(drafter, held, 2) == plain(held, 2)


def test_drafting_ends_in_time_for_the_most_urgent_session() -> None:
    engine = RecordingEngine(OPTIONS, step_s=0.02)
    engine.curve = ((64, 0.02), (128, 0.04))
    drafter = ModelDrafter(engine)
    for name in ("urgent", "patient", "late"):
        drafter.open(session(name, [1, 2, 3], sampling=SAMPLED))
    asks = [Ask("urgent", 3, 6, 0.05), Ask("patient", 3, 6), Ask("late", 3, 6, 0.001)]
    assert [len(proposal.tokens) for proposal in drafter.propose(asks)] == [2, 2, 0]


def test_pace_shares_the_time_and_prefers_some_drafts_to_none() -> None:
    pace = Pace(((8, 0.010), (16, 0.009), (32, 0.040)), 64)
    assert pace.rows(float("inf"), 4, 4) == 64
    assert pace.rows(0.160, 4, 4) == 32  # in proportion past the last point: 33 rows take longer
    assert pace.rows(0.040, 4, 4) == 16  # 10 ms each; the 9 ms of 16 rows count as the 10 ms of 8
    assert pace.rows(0.030, 4, 4) == 4  # a share of 7.5 ms is too short for a step
    assert pace.rows(0.005, 4, 4) == 0
    assert pace.budget_s([1.0, 0.5, 0.001]) == 0.5
    assert Pace((), 16).rows(0.0, 2, 1) == 16


def test_pace_follows_the_steps_that_are_run() -> None:
    pace = Pace(((8, 0.010), (16, 0.020)), 16)
    for _ in range(20):
        pace.observe(8, 0.040)  # the machine got four times slower
    assert pace.rows(0.041, 1, 1) == 8
    assert pace.rows(0.039, 1, 1) == 0


def test_a_drafter_measured_on_a_busy_machine_is_tried_again() -> None:
    """A start-up curve of 1 s steps must not keep a drafter silent for ever behind a deadline of 50 ms."""
    engine = RecordingEngine(OPTIONS, step_s=0.01)
    engine.curve = ((128, 1.0),)
    drafter = ModelDrafter(engine)
    drafter.open(session("s", [1, 2, 3], sampling=SAMPLED))
    drafted = [len(drafter.propose([Ask("s", 3, 4, 0.05)])[0].tokens) for _ in range(40)]
    assert drafted[0] == 0
    assert drafted[-1] == 4
