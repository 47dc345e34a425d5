"""The tensors behind the pages: zeroed when handed out, untouched when shared, of one size for ever."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from paceline.engine.batch import padded_blocks
from paceline.engine.interface import KvRequest, Slice, StepPlan
from paceline.engine.kv_store import KVStore, LayerShape
from paceline.engine.pages import PAGE, BlockTable
from paceline.speculation.params import SamplingParams

SALT = b"salt"


def store_of(pages: int) -> tuple[BlockTable, KVStore]:
    table = BlockTable(pages * PAGE)
    return table, KVStore([LayerShape(1, 4, 4)], table, dtype=torch.float32, device=torch.device("cpu"))


def test_new_pages_are_zero_and_page_zero_is_nobodys() -> None:
    table, store = store_of(2)
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


def test_shared_pages_keep_what_they_hold_and_evicted_ones_are_zeroed() -> None:
    table, store = store_of(3)
    tokens = tuple(range(PAGE + 1))
    assert store.admit(KvRequest("a", tokens, max_len=2 * PAGE), SALT) == 0
    store.clear()
    plan = StepPlan(0, (Slice("a", 0, tokens, samples=0, sampling=SamplingParams(), prompt_len=1),))
    table.begin(plan)
    store.keys[0][PAGE:] = 1  # as if the step had written everywhere
    table.commit(plan)
    table.publish("a", tokens, len(tokens))
    assert store.admit(KvRequest("b", tokens, max_len=2 * PAGE), SALT) == PAGE
    store.clear()
    first, second = table.holding("b").pages
    rows = store.keys[0].view(-1, PAGE * 4)
    assert rows[first].all()
    assert not rows[second].any()
    table.free("a")
    table.free("b")
    assert store.reserve("c", 3 * PAGE)
    store.clear()
    assert not store.keys[0].any()


def test_the_budget_is_allocated_at_once_and_holds_in_bytes() -> None:
    kv_tokens, row_bytes = 5 * PAGE + 3, 2 * 4 * 4
    table = BlockTable(kv_tokens)
    store = KVStore([LayerShape(1, 4, 4)] * 2, table, dtype=torch.float32, device=torch.device("cpu"))
    assert table.tokens <= kv_tokens
    assert store.nbytes == 2 * row_bytes * (table.tokens + PAGE)  # and the page of zeros that stands in for padding
    places = [tensor.data_ptr() for tensor in (*store.keys, *store.values)]
    for number in range(50):
        tokens = (number % 7,) * 40
        assert store.admit(KvRequest(str(number), tokens, max_len=41), SALT) is not None
        store.clear()
        plan = StepPlan(
            0, (Slice(str(number), table.holding(str(number)).length, tokens[-8:], 0, SamplingParams(), 1),)
        )
        table.begin(plan)
        table.commit(plan)
        table.free(str(number))
    assert store.nbytes == 2 * row_bytes * (table.tokens + PAGE)
    assert places == [tensor.data_ptr() for tensor in (*store.keys, *store.values)]


@given(st.integers(1, 100_000))
def test_padding_covers_every_length_and_wastes_at_most_a_quarter(kv_len: int) -> None:
    need = -(-kv_len // 128)
    assert need <= padded_blocks(kv_len) <= need * 1.25
