"""Pages: bounded, never shared, checked against every plan."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paceline.engine.batch import padded_blocks
from paceline.engine.interface import Slice, StepPlan
from paceline.engine.kv_store import PAGE, BlockTable, KVStore, LayerShape
from paceline.speculation.params import SamplingParams


def plan(*slices: tuple[str, int, int]) -> StepPlan:
    return StepPlan(
        0,
        tuple(
            Slice(session, start, (1,) * count, samples=0, sampling=SamplingParams(), prompt_len=1)
            for session, start, count in slices
        ),
    )


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
    ],
)
def test_plans_that_do_not_fit_are_our_bug(bad: StepPlan, words: str) -> None:
    table = BlockTable(64)
    table.reserve("a", 20)
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


def test_new_pages_are_zero_and_page_zero_is_nobodys() -> None:
    table = BlockTable(2 * PAGE)
    store = KVStore([LayerShape(1, 4, 4)], table, dtype=torch.float32, device=torch.device("cpu"))
    assert store.reserve("a", 2 * PAGE)
    assert 0 not in table.holding("a").pages
    store.keys[0][PAGE:] = torch.inf
    table.free("a")
    assert store.reserve("b", 2 * PAGE)
    assert store.keys[0].any()  # whoever reserves computes nothing
    store.clear()
    assert not store.keys[0].any()
    store.keys[0][PAGE:] = 1
    store.clear()
    assert store.keys[0][PAGE:].all()  # once is enough: by now the pages are written to
    assert not store.reserve("c", 1)


@given(st.integers(1, 100_000))
def test_padding_covers_every_length_and_wastes_at_most_a_quarter(kv_len: int) -> None:
    need = -(-kv_len // 128)
    assert need <= padded_blocks(kv_len) <= need * 1.25
