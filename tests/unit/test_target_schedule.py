"""Rows of a step: bounded, fair, nobody starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from paceline.target.schedule import CATCH_UP_SHARE, MIN_CHUNK, FairQueue, Share, allot

demands = st.lists(st.tuples(st.one_of(st.just(1), st.integers(1, 400)), st.integers(0, 16)), max_size=24)


def rows(*demand: tuple[int, int], step_tokens: int) -> list[tuple[int, int]]:
    shares = [Share(missing, wanted) for missing, wanted in demand]
    allot(shares, step_tokens)
    return [(share.rows, share.drafts) for share in shares]


@given(demands, st.integers(2, 300))
def test_a_step_is_bounded_and_wastes_nothing(demand: list[tuple[int, int]], step_tokens: int) -> None:
    shares = [Share(missing, wanted) for missing, wanted in demand]
    allot(shares, step_tokens)
    used = sum(share.total for share in shares)
    assert used <= step_tokens
    for share in shares:
        assert 0 <= share.rows <= share.missing
        assert 0 <= share.drafts <= share.wanted
        assert share.drafts == 0 or share.caught_up
    if not any(share.missing > 1 for share in shares):  # rows kept for catching up are the only ones left unused
        assert used == min(step_tokens, sum(share.missing + share.wanted for share in shares))


@given(demands, st.integers(2, 300))
def test_catching_up_always_gets_its_share(demand: list[tuple[int, int]], step_tokens: int) -> None:
    shares = [Share(missing, wanted) for missing, wanted in demand]
    allot(shares, step_tokens)
    missing = sum(share.missing for share in shares if share.missing > 1)
    got = sum(share.rows for share in shares if share.missing > 1)
    assert got >= min(missing, max(1, step_tokens // CATCH_UP_SHARE))


def test_rounds_under_way_come_first() -> None:
    assert rows((1, 3), (1000, 0), (1, 2), step_tokens=64) == [(1, 3), (57, 0), (1, 2)]


def test_early_positions_of_all_go_before_late_positions_of_one() -> None:
    assert rows((1, 8), (1, 1), (1, 8), step_tokens=8) == [(1, 2), (1, 1), (1, 2)]


def test_a_long_prompt_does_not_hold_up_short_ones() -> None:
    assert rows((10_000, 0), (20, 2), (30, 0), step_tokens=128) == [(78, 0), (20, 0), (30, 0)]


def test_prompts_share_in_chunks_worth_their_while() -> None:
    assert rows((100, 0), (100, 0), (100, 0), step_tokens=40) == [(MIN_CHUNK, 0), (MIN_CHUNK, 0), (8, 0)]


def test_the_last_chunk_carries_drafts_if_rows_are_left() -> None:
    assert rows((10, 5), step_tokens=13) == [(10, 3)]


def test_routers_take_turns_and_lines_keep_their_order() -> None:
    queue = FairQueue()
    for router, session in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("c", "c2")):
        queue.push(router, session)
    assert queue.order() == ["a1", "b1", "c1", "a2", "c2", "a3"]
    queue.turn()
    assert queue.order() == ["b1", "c1", "a1", "c2", "a2", "a3"]
    queue.remove("b", "b1")
    queue.remove("b", "b1")
    assert (len(queue), ("b", "b1") in queue, ("c", "c2") in queue) == (5, False, True)
    assert queue.order() == ["c1", "a1", "c2", "a2", "a3"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), min_size=1, max_size=12), st.integers(2, 24))
def test_nobody_starves_while_others_keep_coming_back(sessions: list[tuple[int, int]], step_tokens: int) -> None:
    """Rounds under way return at once; every prompt is through and everyone served within a bounded number of steps."""
    queue, missing = FairQueue(), {}
    for i, (router, prompt) in enumerate(sessions):
        queue.push(f"r{router}", f"{router}:{i}")
        missing[f"{router}:{i}"] = prompt
    last_served = dict.fromkeys(missing, 0)
    bound = 4 * len(sessions) + sum(missing.values())
    for step in range(1, bound + 1):
        order = queue.order()
        shares = [Share(missing[name], 2) for name in order]
        allot(shares, step_tokens)
        queue.turn()
        for name, share in zip(order, shares, strict=True):
            if share.total:
                last_served[name] = step
                missing[name] = 1 if share.caught_up else missing[name] - share.rows
                owner = f"r{name.split(':')[0]}"
                queue.remove(owner, name)
                queue.push(owner, name)
    assert set(missing.values()) == {1}
    assert bound - min(last_served.values()) <= 4 * len(sessions)
