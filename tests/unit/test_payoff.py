"""Whether drafting pays: choices of a session that is told, in simulated rounds, what its drafts came to."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.speculation.payoff import (
    LAST_PAUSE,
    MOST_LOST,
    START,
    UPKEEP,
    DrafterRecord,
    Load,
    Payoff,
)

Accepting = Callable[[int], int]  # position in the answer -> drafts that would be accepted there


def load(row: float = 0.03) -> Load:
    """A session alone; a step of one row takes a second, each further one ``row`` more."""
    return Load(lambda rows: 1 + row * (rows - 1))


@dataclass
class Simulated:
    """Rounds of one session until ``tokens`` are committed; times in steps of plain decoding."""

    payoff: Payoff
    accepting: Accepting
    draft_s: Callable[[int], float]
    row: float = 0.03
    most: int = 8
    seconds: float = 0.0
    rounds: int = 0
    position: int = 0
    asked: list[int] = field(default_factory=list)  # of every round
    rested: list[bool] = field(default_factory=list)  # whether it was said before every round that it would not ask

    def run(self, tokens: int) -> Simulated:
        shared = load(self.row)
        end = self.position + tokens
        while self.position < end:
            self.rested.append(self.payoff.rests)
            k = self.payoff.choose(self.most, shared)
            assert not (k and self.rested[-1])
            accepted = min(k, self.accepting(self.position))
            self.seconds += shared.step_s(1 + k)
            if k:
                took_s = self.draft_s(k)
                self.seconds += took_s
                self.payoff.observe(
                    asked=k, drafted=k, verified=k, accepted=accepted, draft_s=took_s, missed=False, load=shared
                )
            self.position += 1 + accepted
            self.asked.append(k)
        return self

    @property
    def speedup(self) -> float:
        return self.position / self.seconds


def lucky(chance: float, seed: int = 1) -> Accepting:
    """Drafts that are accepted one by one with the same chance, wherever they stand."""
    rng = random.Random(seed)

    def accepting(position: int) -> int:
        del position
        count = 0
        while rng.random() < chance:
            count += 1
        return count

    return accepting


def experienced(chance: float, draft_s: Callable[[int], float]) -> DrafterRecord:
    """A record of ten sessions with such drafts."""
    record = DrafterRecord()
    for seed in range(10):
        Simulated(Payoff(record), lucky(chance, seed + 100), draft_s).run(128)
    return record


def cheap(k: int) -> float:
    del k
    return 0.06


def block(k: int) -> float:
    del k
    return 0.3


def one_by_one(k: int) -> float:
    return 0.1 + 0.2 * k


DRAFT_TIMES = [cheap, block, one_by_one]


@settings(deadline=None, max_examples=150)
@given(
    accepted=st.lists(st.integers(0, 8), min_size=1, max_size=60),
    draft_s=st.sampled_from(DRAFT_TIMES),
    row=st.floats(0, 0.3),
    known=st.sampled_from([None, 0.2, 0.6, 0.9]),
    tokens=st.integers(1, 400),
)
def test_whatever_is_drafted_no_more_is_lost_than_the_purse_holds(
    accepted: list[int], draft_s: Callable[[int], float], row: float, known: float | None, tokens: int
) -> None:
    record = DrafterRecord() if known is None else experienced(known, draft_s)
    run = Simulated(Payoff(record), lambda position: accepted[position % len(accepted)], draft_s, row).run(tokens)
    first = draft_s(8) + 8 * row  # the first round costs before anybody knows what it does
    one_round = draft_s(8) + 8 * row
    assert run.seconds - run.position <= START + UPKEEP * len(run.asked) + first + one_round


@settings(deadline=None, max_examples=40)
@given(draft_s=st.sampled_from(DRAFT_TIMES), row=st.floats(0, 0.3), until=st.integers(150, 400))
def test_a_session_that_stopped_probes_within_a_bound_and_comes_back_when_it_pays(
    draft_s: Callable[[int], float], row: float, until: int
) -> None:
    payoff = Payoff(experienced(0.6, draft_s))
    Simulated(payoff, lambda position: 0, draft_s, row).run(until)
    assert payoff.stopped
    back = Simulated(payoff, lambda position: 8, draft_s, row)
    rounds = 0
    while not any(back.asked):
        back.run(1)
        rounds += 1
    assert rounds <= max(LAST_PAUSE, 2 * MOST_LOST / UPKEEP) + 1
    again = Simulated(payoff, lambda position: 8, draft_s, row).run(400)
    assert again.asked.count(0) < len(again.asked) / 2
    assert not payoff.stopped


def test_what_drafts_gained_may_be_spent_on_text_nobody_guesses() -> None:
    fresh = Payoff(experienced(0.6, block))
    earned = Payoff(experienced(0.6, block))
    Simulated(earned, lambda position: 4, block).run(60)
    asked = [Simulated(each, lambda position: 0, block).run(40).asked for each in (fresh, earned)]
    until_stopped = [each.index(0) for each in asked]
    assert until_stopped[1] > 1.5 * until_stopped[0]


def test_probes_grow_rarer_while_they_are_in_vain() -> None:
    run = Simulated(Payoff(experienced(0.6, cheap)), lambda position: 0, cheap).run(1000)
    questions = [place for place, k in enumerate(run.asked) if k]
    assert questions[0] < 3
    late = [b - a for a, b in zip(questions[-6:], questions[-5:], strict=False)]
    assert all(gap >= LAST_PAUSE for gap in late)
    assert max(late) <= LAST_PAUSE + 1
    assert run.rested.count(True) > 0.9 * run.asked.count(0)  # features can wait in nearly all rounds that don't ask


@pytest.mark.parametrize("draft_s", DRAFT_TIMES)
def test_text_nobody_can_guess_costs_at_most_a_few_percent(draft_s: Callable[[int], float]) -> None:
    record = experienced(0.6, draft_s)
    for chance in (0.0, 0.1, 0.2):
        for seed in range(20):
            assert Simulated(Payoff(record), lucky(chance, seed), draft_s).run(128).speedup > 0.955


@pytest.mark.parametrize(("draft_s", "chance"), [(cheap, 0.5), (block, 0.6), (one_by_one, 0.85)])
def test_drafts_that_pay_go_on(draft_s: Callable[[int], float], chance: float) -> None:
    record = experienced(0.6, draft_s)
    always = [_always(lucky(chance, seed), draft_s) for seed in range(20)]
    chosen = [Simulated(Payoff(record), lucky(chance, seed), draft_s).run(128).speedup for seed in range(20)]
    assert sum(chosen) > 0.95 * sum(always)
    assert sum(chosen) > 1.2 * 20


def _always(accepting: Accepting, draft_s: Callable[[int], float]) -> float:
    position, seconds = 0, 0.0
    while position < 128:
        seconds += draft_s(8) + load().step_s(9)
        position += 1 + min(8, accepting(position))
    return position / seconds


def test_a_drafter_that_pays_by_the_token_is_asked_for_as_many_as_pay() -> None:
    record = experienced(0.7, one_by_one)
    few = Simulated(Payoff(record), lucky(0.7), one_by_one).run(200)
    many = Simulated(Payoff(experienced(0.7, cheap)), lucky(0.7), cheap).run(200)
    assert 1 <= max(few.asked[20:]) <= 4
    assert sorted(many.asked)[len(many.asked) // 2] >= 6


def test_one_session_does_not_spoil_a_drafter_for_the_next() -> None:
    record = experienced(0.7, block)
    Simulated(Payoff(record), lambda position: 0, block).run(128)
    assert Payoff(record).choose(8, load()) > 0


def test_nothing_is_asked_for_while_others_share_a_step_that_grows_with_its_rows() -> None:
    busy = Load(lambda rows: 0.1 * rows, rows=60, tokens=60)
    assert Payoff(experienced(0.3, cheap)).choose(8, busy) == 0
    flat = Load(lambda rows: 1.0, rows=60, tokens=60)
    assert Payoff(experienced(0.3, lambda k: 0.001)).choose(8, flat) > 0


def test_drafts_others_wait_for_anyway_cost_nothing() -> None:
    record = experienced(0.15, block)
    alone = Load(lambda rows: 1.0)
    together = Load(lambda rows: 1.0, rows=4, tokens=8, wait_s=0.3)
    assert Payoff(record).choose(8, alone) == 0
    assert Payoff(record).choose(8, together) > 0


def test_while_costs_are_unknown_everything_is_asked_for() -> None:
    assert Payoff(DrafterRecord()).choose(5, Load(lambda rows: 0.0)) == 5


def test_a_missed_answer_costs_what_was_waited_and_says_nothing_of_the_drafts() -> None:
    record = experienced(0.8, block)
    before = record.survival.gains(4)
    payoff = Payoff(record)
    k = payoff.choose(4, load())
    payoff.observe(asked=k, drafted=0, verified=0, accepted=0, draft_s=9.0, missed=True, load=load())
    assert payoff.purse == pytest.approx(START - MOST_LOST + UPKEEP)
    assert record.survival.gains(4) == before
    assert payoff.choose(4, load()) == 0
