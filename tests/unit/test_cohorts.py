"""When batches leave, and how many cohorts there are."""

from __future__ import annotations

import pytest
from paceline.speculation.cohorts import Cohorts
from paceline.speculation.cost import CostCurve, Ema

DEADLINE = 0.1
FLAT = ((1, 0.025), (64, 0.025))
LINEAR = ((1, 0.002), (100, 0.2))


def cohorts(pinned: int = 1, curve: tuple[tuple[int, float], ...] = FLAT) -> Cohorts:
    return Cohorts(draft_deadline_s=DEADLINE, pinned=pinned, curve=CostCurve(curve))


def join(group: Cohorts, names: str, now: float = 0.0, deadline: float | None = None) -> None:
    for name in names:
        group.begin(name, now, deadline, alone=False)


def test_a_batch_leaves_when_all_its_members_are_ready() -> None:
    group = cohorts()
    join(group, "ab", 0.0, deadline=DEADLINE)
    group.ready("a", 0.01)
    assert group.due(0.01) == []
    group.ready("b", 0.02)
    assert group.due(0.02) == [["a", "b"]]
    assert group.due(0.03) == []


def test_a_partial_batch_leaves_at_the_deadline_and_the_late_one_rides_in_the_next() -> None:
    group = cohorts()
    join(group, "ab", 0.0, deadline=DEADLINE)
    join(group, "c", 0.09, deadline=0.19)
    group.ready("a", 0.01)
    group.ready("b", 0.01)
    assert group.next_deadline() == pytest.approx(DEADLINE)
    assert group.due(0.099) == []
    assert group.due(0.1) == [["a", "b"]]
    group.ready("c", 0.11)
    assert group.due(0.2) == [["c"]]


def test_drafts_past_their_deadline_are_named() -> None:
    group = cohorts()
    join(group, "a", 0.0, deadline=0.1)
    join(group, "b", 0.05, deadline=0.15)
    assert group.expired(0.1) == ["a"]


def test_a_session_in_its_first_round_rides_alone_and_holds_up_nobody() -> None:
    group = cohorts()
    group.begin("new", 0.0, None, alone=True)
    join(group, "a")
    assert group.due(0.0) == [["new"], ["a"]]
    join(group, "a", 0.03)
    assert group.due(0.03) == [["a"]]  # the prefill of "new" is still under way


def test_a_batch_waits_about_a_step_for_the_rest_of_the_last_one() -> None:
    group = cohorts()
    join(group, "ab")
    assert group.due(0.0) == [["a", "b"]]
    join(group, "a", 0.03)
    assert group.due(0.03) == []
    assert group.next_deadline() == pytest.approx(0.055)
    join(group, "b", 0.04)
    assert group.due(0.04) == [["a", "b"]]


def test_whoever_leaves_is_not_waited_for() -> None:
    group = cohorts()
    join(group, "ab", 0.0, deadline=DEADLINE)
    group.ready("a", 0.01)
    group.remove("b")
    assert group.due(0.02) == [["a"]]
    group.remove("a")
    assert len(group) == 0
    assert group.next_deadline() is None


def test_new_sessions_join_the_emptier_of_two_cohorts() -> None:
    group = cohorts(pinned=2)
    join(group, "abcd")
    assert group.sizes == (2, 2)


def test_one_cohort_becomes_two_at_the_members_next_rounds() -> None:
    group = cohorts(pinned=1)
    join(group, "abcd")
    group.due(0.0)
    group.count = 2
    join(group, "abcd", 0.1)
    assert group.sizes == (2, 2)
    group.count = 1
    join(group, "abcd", 0.2)
    assert group.sizes == (4, 0)


def test_two_cohorts_do_not_leave_together() -> None:
    group = cohorts(pinned=2)
    join(group, "abcd")
    first = group.due(0.0)
    assert len(first) == 1
    assert group.due(0.005) == []
    later = group.due(0.025 / 2)
    assert sorted(name for batch in first + later for name in batch) == list("abcd")


def drive(group: Cohorts, draft_s: float, rounds: int = 60) -> None:
    """Rounds of 16 sessions with measured draft times and a curve as given."""
    now = 0.0
    names = [f"s{index}" for index in range(16)]
    for _ in range(rounds):
        join(group, names, now)  # type: ignore[arg-type]
        for _ in range(2):
            now += 0.03
            for batch in group.due(now):
                group.draft_s.add(draft_s)
                rows = 5 * len(batch)
                group.observe_step(len(batch), rows, group.curve.seconds(rows))
        now += 0.2


@pytest.mark.parametrize(
    ("curve", "draft_s", "expected"),
    [
        (FLAT, 0.004, 1),  # 25 ms + 4 ms: 29 ms in lockstep, 50 ms in two
        (FLAT, 0.0, 1),  # n-gram drafts are nearly free
        (LINEAR, 0.0, 1),
        (LINEAR, 0.08, 2),  # 0.24 s in lockstep, 0.16 s in two
    ],
)
def test_the_number_of_cohorts_follows_measured_times(
    curve: tuple[tuple[int, float], ...], draft_s: float, expected: int
) -> None:
    group = cohorts(pinned=0, curve=curve)
    drive(group, draft_s)
    assert group.count == expected, group.cycles()


def test_a_gain_below_the_hysteresis_changes_nothing() -> None:
    group = cohorts(pinned=0, curve=((1, 0.05), (100, 0.06)))
    drive(group, 0.06)
    one, two = group.cycles()
    assert one * 0.9 <= two < one * 1.1
    assert group.count == 1


def test_a_pinned_number_stays() -> None:
    group = cohorts(pinned=1, curve=LINEAR)
    drive(group, 0.08)
    assert group.count == 1


def test_the_curve_is_scaled_by_what_is_seen() -> None:
    curve = CostCurve(((1, 0.01), (11, 0.02)))
    assert curve.seconds(6) == pytest.approx(0.015)
    assert curve.seconds(21) == pytest.approx(0.03)  # goes on as it ended
    assert curve.seconds(0.5) == pytest.approx(0.01)
    curve.observe(1, 0.02)
    assert curve.seconds(6) == pytest.approx(0.03)
    curve.observe(0, 1.0)
    assert curve.seconds(6) == pytest.approx(0.03)


def test_without_a_curve_the_first_step_makes_a_flat_one() -> None:
    curve = CostCurve()
    assert curve.seconds(10) == 0
    curve.observe(8, 0.02)
    assert curve.seconds(64) == pytest.approx(0.02)


def test_an_average_starts_with_its_first_value() -> None:
    average = Ema(0.5)
    assert average.get(7.0) == 7.0
    average.add(1.0)
    average.add(2.0)
    assert average.get(0.0) == 1.5
