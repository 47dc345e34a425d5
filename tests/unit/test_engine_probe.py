"""The check that runs at every load notices bits that depend on the batch."""

from __future__ import annotations

import pytest
import torch
from paceline.engine.interface import StepPlan
from paceline.engine.kv_store import KVStore
from paceline.engine.linear import TiledLinear, packing_works
from paceline.engine.pages import BlockTable
from paceline.engine.probe import Scratch, check_invariance
from paceline.speculation.errors import Unsupported
from torch import Tensor

from tests.congruence.engine_tiny import VOCAB, configs, tiny_engine


def test_logits_that_depend_on_the_batch_are_noticed() -> None:
    engine = tiny_engine(configs()["llama"])

    def scratch() -> Scratch:
        return engine.scratch(640)

    def honest(plan: StepPlan, table: BlockTable, store: KVStore) -> Tensor:
        return engine._forward(plan, table, store)

    def by_rows(plan: StepPlan, table: BlockTable, store: KVStore) -> Tensor:
        return engine._forward(plan, table, store) * (1 + plan.rows * 2**-20)

    check_invariance(honest, scratch(), row_tile=16, vocab_size=VOCAB)
    with pytest.raises(Unsupported, match="bits depend on the batch"):
        check_invariance(by_rows, scratch(), row_tile=16, vocab_size=VOCAB)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row_tile", [1, 8, 16, 32])
def test_tiled_products_are_right_and_do_not_mind_their_place(dtype: torch.dtype, row_tile: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(70, 50, generator=generator).to(dtype)
    bias = torch.randn(70, generator=generator).to(dtype)
    rows = torch.randn(1, 5 * row_tile, 50, generator=generator).to(dtype)
    for packed in {packing_works(dtype, row_tile), False}:
        linear = TiledLinear(weight, bias, row_tile=row_tile, packed=packed)
        out = linear(rows)
        expected = rows.float() @ weight.float().T + bias.float()
        torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
        order = torch.randperm(5 * row_tile, generator=generator)
        assert torch.equal(linear(rows[:, order]), out[:, order])
        if row_tile > 1:
            with pytest.raises(AssertionError, match="no multiple"):
                linear(torch.zeros(row_tile + 1, 50, dtype=dtype))
