"""Pages: bounded, shared only where published, checked against every plan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.engine.interface import KvRequest, Slice, StepPlan
from paceline.engine.pages import PAGE, BlockTable
from paceline.engine.prefix import keys, salt_of
from paceline.speculation.params import SamplingParams

SALT = salt_of("class", "tenant", page=PAGE)
TEXT = tuple(range(100, 100 + 5 * PAGE))


def plan(*slices: tuple[str, int, int]) -> StepPlan:
    return StepPlan(
        0,
        tuple(
            Slice(session, start, (1,) * count, samples=0, sampling=SamplingParams(), prompt_len=1)
            for session, start, count in slices
        ),
    )


def admit(table: BlockTable, session: str, tokens: tuple[int, ...], **changes: object) -> int | None:
    """Admit a session that may grow by one token; leading positions it needn't compute."""
    salt = changes.pop("salt", SALT)
    assert isinstance(salt, bytes)
    request = KvRequest(session, tokens, **{"max_len": len(tokens) + 1, **changes})  # type: ignore[arg-type]
    admission = table.admit(request, salt)
    table.check_integrity()
    return None if admission is None else admission.reused


def compute(table: BlockTable, session: str, tokens: tuple[int, ...], **changes: object) -> int:
    """Admit a session, feed it all of its tokens, publish them; positions it did not have to compute."""
    reused = admit(table, session, tokens, **changes)
    assert reused is not None
    step = plan((session, reused, len(tokens) - reused))
    table.begin(step)
    table.commit(step)
    table.publish(session, tokens, len(tokens))
    table.check_integrity()
    return reused


def test_reserving_is_bounded_and_freeing_gives_back() -> None:
    table = BlockTable(5 * PAGE + 7)
    assert table.tokens == 5 * PAGE
    assert table.reserve("a", 3 * PAGE) is not None
    assert table.reserve("b", 2 * PAGE + 1) is None
    assert table.reserve("b", 2 * PAGE) is not None
    assert table.free_tokens == 0
    table.free("a")
    table.free("nobody")
    assert table.free_tokens == 3 * PAGE
    table.check_integrity()


def test_reserving_again_keeps_the_state_and_grows() -> None:
    table = BlockTable(4 * PAGE)
    table.reserve("a", 10)
    table.begin(plan(("a", 0, 10)))
    table.commit(plan(("a", 0, 10)))
    assert table.reserve("a", 5) == []
    fresh = table.reserve("a", PAGE + 1)
    assert fresh is not None
    assert len(fresh) == 1
    assert table.holding("a").length == 10
    assert table.reserve("a", 5 * PAGE) is None  # a refusal changes nothing
    assert table.holding("a").reserved == PAGE + 1


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (plan(("nobody", 0, 1)), "not reserved"),
        (plan(("a", 4, 1)), "start 4, holds 3"),
        (plan(("a", 3, 18)), "end 21, reserved 20"),
        (plan(("a", 0, 1), ("a", 1, 1)), "twice"),
        (plan(), "at least one slice"),
        (plan(("shares", 15, 3)), "start 15, published 16"),
    ],
)
def test_plans_that_do_not_fit_are_our_bug(bad: StepPlan, words: str) -> None:
    table = BlockTable(128)
    table.reserve("a", 20)
    compute(table, "shares", TEXT[:18])
    table.begin(plan(("a", 0, 3)))
    table.commit(plan(("a", 0, 3)))
    with pytest.raises(AssertionError, match=words):
        table.begin(bad)
    assert table.holding("a").length == 3


def test_a_step_that_fails_leaves_what_was_before_its_start() -> None:
    table = BlockTable(64)
    table.reserve("a", 20)
    table.commit(plan(("a", 0, 12)))
    table.begin(plan(("a", 8, 2)))  # and then the forward pass raises
    assert table.holding("a").length == 8


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 120)), max_size=40))
def test_pages_always_add_up(moves: list[tuple[str, int]]) -> None:
    table = BlockTable(200)
    for session, size in moves:
        if size:
            table.reserve(session, size)
        else:
            table.free(session)
        table.check_integrity()


def test_a_prefix_is_shared_while_it_is_held_and_after() -> None:
    table = BlockTable(20 * PAGE)
    assert compute(table, "a", TEXT[:40]) == 0
    assert compute(table, "b", TEXT[:40]) == 32
    assert table.holding("a").pages[:2] == table.holding("b").pages[:2]
    assert table.holding("a").pages[2] != table.holding("b").pages[2]
    assert table.free_tokens == 16 * PAGE
    table.free("a")
    table.free("b")
    assert (table.free_tokens, table.idle_tokens) == (20 * PAGE, 2 * PAGE)
    assert admit(table, "c", (*TEXT[:16], 1, 2, 3)) == 16
    assert admit(table, "d", (1, *TEXT[1:40])) == 0


def test_the_last_token_is_always_computed() -> None:
    table = BlockTable(20 * PAGE)
    compute(table, "a", TEXT[:32])
    assert admit(table, "b", TEXT[:32]) == 16
    assert admit(table, "c", TEXT[:33]) == 32


def test_what_is_not_published_is_not_shared() -> None:
    table = BlockTable(20 * PAGE)
    assert admit(table, "a", TEXT[:40], max_len=60) == 0
    table.commit(plan(("a", 0, 40)))
    assert admit(table, "b", TEXT[:40]) == 0
    assert table.publish("a", TEXT[:31], 31) == 1  # a draft token may stand at position 31
    assert table.publish("a", TEXT[:31], 31) == 0
    assert admit(table, "c", TEXT[:40]) == 16


@pytest.mark.parametrize(
    "changes",
    [{"salt": salt_of("class", "other", page=PAGE)}, {"salt": salt_of("b", "tenant", page=PAGE)}, {"share": False}],
)
def test_who_does_not_share(changes: dict[str, object]) -> None:
    table = BlockTable(20 * PAGE)
    compute(table, "a", TEXT[:40])
    assert admit(table, "b", TEXT[:40], **changes) == 0


def test_keys_depend_on_everything_before() -> None:
    def found(*tokens: int) -> list[bytes]:
        return list(keys(SALT, tokens, page=2))

    assert len(found(1, 2, 3, 4, 5)) == 2
    assert found(1, 2, 3, 4)[0] == found(1, 2, 9, 9)[0]
    assert len({found(1, 2, 3, 4)[1], found(9, 2, 3, 4)[1], found(3, 4)[0], found(1, 2)[0]}) == 4


def test_the_least_recently_used_is_evicted_first_and_ends_before_beginnings() -> None:
    table = BlockTable(6 * PAGE)
    old, new = TEXT[:33], tuple(reversed(TEXT))[:33]
    compute(table, "old", old, max_len=33)
    compute(table, "new", new, max_len=33)
    assert table.free_tokens == 0
    table.free("old")
    table.free("new")
    assert table.idle_tokens == 4 * PAGE
    assert table.reserve("b", 3 * PAGE) is not None  # two free pages and one of the old session's
    table.check_integrity()
    assert table.idle_tokens == 3 * PAGE
    assert admit(table, "again", old, max_len=33) == 16  # its second page went, and now the new session's go
    table.free("b")
    assert admit(table, "other", new) == 0


def test_pages_somebody_holds_are_never_evicted() -> None:
    table = BlockTable(4 * PAGE)
    compute(table, "a", TEXT[:32], max_len=32)
    assert table.reserve("b", 2 * PAGE) is not None
    assert table.reserve("c", 1) is None
    assert admit(table, "c", (7,) * 5) is None
    assert admit(table, "c", TEXT[:20]) is None  # one shared page, and one that is not there
    table.free("b")
    assert admit(table, "c", TEXT[:20]) == 16


def test_idle_pages_are_not_counted_twice() -> None:
    table = BlockTable(4 * PAGE)
    compute(table, "a", TEXT[:33])
    table.free("a")
    assert (table.free_tokens, table.idle_tokens) == (4 * PAGE, 2 * PAGE)
    assert admit(table, "b", TEXT[:33], max_len=4 * PAGE + 1) is None  # two to share, and three more of two
    assert admit(table, "b", TEXT[:33], max_len=4 * PAGE) == 32


def test_sharing_lets_in_more_than_would_fit_apart() -> None:
    table = BlockTable(6 * PAGE)
    compute(table, "a", TEXT[:64], max_len=80)
    assert admit(table, "b", (*TEXT[:64], 1), max_len=80) == 64
    assert admit(table, "c", (*TEXT[:64], 2), max_len=80) is None


def test_a_session_goes_on_with_its_pages_when_it_is_opened_again() -> None:
    table = BlockTable(20 * PAGE)
    compute(table, "a", TEXT[:40], max_len=60)
    pages = list(table.holding("a").pages)
    assert admit(table, "a", TEXT[:40], max_len=80, kept=39) == 39
    assert table.holding("a").pages[: len(pages)] == pages
    assert admit(table, "a", TEXT[:50], max_len=60, kept=40) == 40


def test_a_session_opened_again_further_back_starts_over_on_what_is_published() -> None:
    table = BlockTable(5 * PAGE)
    compute(table, "a", TEXT[:64], max_len=80)
    before = list(table.holding("a").pages)
    other = (*TEXT[:40], 1, 2, 3)
    assert admit(table, "a", other, max_len=80, kept=40) == 32  # it would write to its third page, which is published
    assert table.holding("a").pages[:2] == before[:2]
    step = plan(("a", 32, 11))
    table.begin(step)
    table.commit(step)
    assert table.publish("a", other, 43) == 0
    table.free("a")
    assert admit(table, "b", TEXT[:64], max_len=80) == 32  # the rest had to make room for the other text


def test_a_session_that_can_not_start_over_stays_as_it_is() -> None:
    table = BlockTable(6 * PAGE)
    compute(table, "a", TEXT[:64], max_len=64)
    compute(table, "b", (*TEXT[:64], 9), max_len=80)
    before = list(table.holding("a").pages)
    assert table.reserve("c", PAGE) is not None
    assert admit(table, "a", (1, 2, 3), max_len=64, kept=0) is None  # all of its pages are b's as well
    assert table.holding("a").pages == before
    assert admit(table, "a", TEXT[:64], max_len=64, kept=63, in_step=True) is None
    assert admit(table, "a", (*TEXT[:63], 1), max_len=64, kept=63, in_step=True) is None
    table.free("c")
    table.free("b")
    assert admit(table, "a", (1, 2, 3), max_len=64, kept=0) == 0


def test_nothing_changes_for_a_session_in_a_step() -> None:
    table = BlockTable(20 * PAGE)
    assert admit(table, "a", TEXT[:8], max_len=32) == 0
    table.commit(plan(("a", 0, 8)))
    assert admit(table, "a", TEXT[:8], max_len=33, kept=7, in_step=True) is None
    assert admit(table, "a", TEXT[:8], max_len=32, kept=7, in_step=True) == 7
    assert admit(table, "a", TEXT[:8], max_len=32, kept=7, in_step=True, salt=b"other") is None


def test_what_is_freed_as_broken_is_never_found_again() -> None:
    table = BlockTable(20 * PAGE)
    compute(table, "a", TEXT[:40])
    compute(table, "b", TEXT[:40])
    table.free("a", keep=False)
    table.check_integrity()
    assert admit(table, "c", TEXT[:40]) == 0
    table.free("b")
    assert table.idle_tokens == 0
    table.check_integrity()


def test_the_same_text_computed_twice_is_found_once() -> None:
    table = BlockTable(20 * PAGE)
    for session in "ab":
        assert admit(table, session, TEXT[:40]) == 0
        table.commit(plan((session, 0, 40)))
    for session in "ab":
        assert table.publish(session, TEXT[:40], 40) == 2
        table.check_integrity()
    assert admit(table, "c", TEXT[:40]) == 32
    assert table.holding("c").pages[:2] == table.holding("a").pages[:2]
    for session in "abc":
        table.free(session)
    assert table.idle_tokens == 2 * PAGE
    table.check_integrity()
