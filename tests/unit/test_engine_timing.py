"""The curve measured at start-up is the machine's own, whatever else computed meanwhile; and it is measured soon."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from paceline.engine.timing import BUDGET_S, MEETINGS_AGAINST_ODDS, Step, measure

COUNTS = (1, 8, 16, 32, 64, 128)
WARM_UP = 1.5  # times what the first step of so many rows takes
Curve = tuple[tuple[int, float], ...]


def usual(rows: int) -> float:
    return 0.006 + 0.0006 * rows


class Machine:
    """Runs steps in a time of its own; in bursts, others leave it one part in ``factor`` of what it is."""

    def __init__(
        self,
        takes: Callable[[int], float] = usual,
        bursts: Sequence[tuple[float, float]] = (),
        factor: float = 4.0,
    ) -> None:
        self.now, self.ran = 0.0, list[int]()
        self._takes, self._bursts, self._factor = takes, bursts, factor

    def clock(self) -> float:
        return self.now

    def step_of(self, rows: int) -> Step:
        return lambda: self._run(rows)

    def _run(self, rows: int) -> None:
        work = self._takes(rows) * (1 if rows in self.ran else WARM_UP)
        self.ran.append(rows)
        while work > 1e-12:
            busy = any(begin <= self.now < end for begin, end in self._bursts)
            edges = [edge for burst in self._bursts for edge in burst if edge > self.now]
            slow = self._factor if busy else 1.0
            took = min(work * slow, min(edges, default=float("inf")) - self.now)
            self.now += took
            work -= took / slow

    def error(self, curve: Curve) -> float:
        """How far off the curve is, at worst, as a factor."""
        return max(seconds / self._takes(rows) for rows, seconds in curve)


def in_one_go(machine: Machine) -> Curve:
    """One row count after the other: what a burst can bend."""
    curve = []
    for rows in COUNTS:
        times = []
        for _ in range(5 if rows <= 16 else 2):
            begun = machine.now
            machine.step_of(rows)()
            times.append(machine.now - begun)
        curve.append((rows, min(times)))
    return tuple(curve)


def test_a_quiet_machine_is_measured_in_three_passes_and_no_longer_than_in_one_go() -> None:
    quiet, other = Machine(), Machine()
    curve = measure(quiet.step_of, COUNTS, quiet.clock)
    assert quiet.error(curve) == pytest.approx(1)
    assert [rows for rows, _ in curve] == list(COUNTS)
    assert quiet.ran == [*COUNTS] * 3
    in_one_go(other)
    assert quiet.now < 1.25 * other.now


def test_a_burst_bends_nothing_whenever_it_comes() -> None:
    worst = 1.0
    for length in (0.03, 0.1, 0.3, 0.6):
        for start in range(60):
            bursts = [(0.01 * start, 0.01 * start + length)]
            machine = Machine(bursts=bursts)
            assert machine.error(measure(machine.step_of, COUNTS, machine.clock)) < 1.15, bursts
            assert machine.now < BUDGET_S
            other = Machine(bursts=bursts)
            worst = max(worst, other.error(in_one_go(other)))
    assert worst > 3  # what such a burst can do


def test_on_a_machine_that_stays_busy_it_ends_in_time_and_bends_less() -> None:
    errors, others = list[float](), list[float]()
    for seed in range(30):
        rng, at, bursts = random.Random(seed), 0.0, list[tuple[float, float]]()
        while at < 10:
            at += rng.uniform(0.02, 0.1)
            bursts.append((at, at := at + rng.uniform(0.02, 0.1)))
        machine, other = Machine(bursts=bursts), Machine(bursts=bursts)
        curve = measure(machine.step_of, COUNTS, machine.clock)
        errors.append(machine.error(curve))
        others.append(other.error(in_one_go(other)))
        assert [rows for rows, _ in curve] == list(COUNTS)
        assert machine.now < BUDGET_S + 4 * usual(128)
        assert all(before <= 1.06 * after for (_, before), (_, after) in pairwise(curve)), curve
    assert sum(errors) < 0.75 * sum(others)


def test_what_time_ran_out_for_is_what_the_others_leave_possible() -> None:
    machine = Machine(bursts=[(0.1, 100.0)], factor=30)  # after the first steps of 1, 8, 16 and 32 rows
    curve = measure(machine.step_of, COUNTS, machine.clock)
    assert [rows for rows, _ in curve] == [1, 8, 16, 32, 64]
    assert machine.ran.count(64) == 1
    assert machine.error(curve) < 2
    assert machine.now < BUDGET_S + 30 * WARM_UP * usual(64)


def test_a_model_too_large_for_the_budget_has_two_points() -> None:
    machine = Machine(lambda rows: 1 + 0.01 * rows)
    curve = measure(machine.step_of, COUNTS, machine.clock)
    assert [rows for rows, _ in curve] == [1, 8]
    assert machine.error(curve) == pytest.approx(1)
    assert machine.ran == [1, 8, 1, 8]


def test_row_counts_are_left_out_as_time_runs_out() -> None:
    machine = Machine(lambda rows: 0.03 * rows)
    curve = measure(machine.step_of, COUNTS, machine.clock)
    assert [rows for rows, _ in curve] == [1, 8, 16, 32]
    assert machine.ran == [1, 8, 16, 32, 1, 8]


def test_a_machine_that_is_odd_is_believed() -> None:
    """Eight rows take longer than sixteen, and than eight steps of one: measured again, but not for ever."""
    machine = Machine(lambda rows: 0.08 if rows == 8 else usual(rows))
    curve = measure(machine.step_of, COUNTS, machine.clock)
    assert machine.error(curve) == pytest.approx(1)
    assert machine.ran.count(8) == MEETINGS_AGAINST_ODDS + 1  # the first was slower
    assert machine.ran.count(128) == 3
