"""A session that starts on shared pages has bitwise the same logits as one that computed everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant
from paceline.engine.interface import KvRequest, Slice
from paceline.engine.pages import PAGE
from paceline.engine.torch_engine import TorchEngine

from tests.congruence.engine_tiny import configs, piece, plan, tiny_engine, tokens_of
from tests.unit.kv_machine import KvMachine, plan_of

LENGTH = 290
TOKENS = tokens_of(1, LENGTH)


@pytest.fixture(scope="module", params=["llama", "gemma2", "deepseek"])
def engine(request: pytest.FixtureRequest) -> TorchEngine:
    return tiny_engine(configs()[request.param], torch.bfloat16)


def admit(engine: TorchEngine, name: str, tokens: tuple[int, ...], tenant: str = "") -> int:
    reused = engine.admit(KvRequest(name, tokens, len(tokens) + 8, tenant))
    assert reused is not None
    return reused


@pytest.mark.parametrize("common", [PAGE, 130, 289])
def test_a_session_on_shared_pages(engine: TorchEngine, common: int) -> None:
    tenant = f"of {common}"
    whole = (*TOKENS[:common], *tokens_of(2, LENGTH - common))
    assert admit(engine, "alone", whole) == 0
    reference = engine.forward(plan(piece("alone", 0, whole)))
    engine.free("alone")

    assert admit(engine, "first", TOKENS, tenant) == 0
    engine.forward(plan(piece("first", 0, TOKENS, 0)))
    engine.publish("first", TOKENS, LENGTH)
    for name in ("while it is held", "and when it is idle"):
        start = admit(engine, name, whole, tenant)
        assert start == common // PAGE * PAGE
        assert torch.equal(engine.forward(plan(piece(name, start, whole[start:]))), reference[start:])
        engine.free("first")
    for name in ("while it is held", "and when it is idle"):
        engine.free(name)
    engine.check_integrity()


class Shared(KvMachine):
    """Against an engine of the same weights that shares nothing."""

    alone: TorchEngine | None = None
    tiny: TorchEngine | None = None

    @initialize(crowd=st.integers(0, 24))
    def begin(self, crowd: int) -> None:
        if Shared.tiny is None or Shared.alone is None:
            Shared.tiny, Shared.alone = (tiny_engine(configs()["llama"], kv_tokens=28 * PAGE) for _ in range(2))
        self.engine, self.reference = Shared.tiny, Shared.alone
        self.table = self.engine._table
        for name in list(self.table._sessions):
            self.engine.free(name)
        if crowd:
            assert self.engine.reserve("crowd", crowd * PAGE)

    def admit(self, request: KvRequest) -> int | None:
        return self.engine.admit(request)

    def feed(self, piece: Slice, whole: tuple[int, ...]) -> None:
        logits = self.engine.forward(plan_of(piece))
        assert self.reference.reserve("alone", len(whole))
        expected = self.reference.forward(plan_of(Slice("alone", 0, whole, piece.samples, piece.sampling, 1)))
        self.reference.free("alone")
        assert torch.equal(logits, expected), piece

    def publish(self, name: str, tokens: tuple[int, ...], length: int) -> None:
        self.engine.publish(name, tokens, length)

    def free(self, name: str, keep: bool) -> None:
        self.engine.free(name, keep=keep)

    def check_held(self, name: str, tokens: tuple[int, ...]) -> None:
        """Its logits show it, when it is fed."""

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.check_integrity()
        held = {page for pages in self.table._sessions.values() for page in pages.pages}
        assert self.table.free_tokens == self.table.tokens - len(held) * PAGE


TestShared = Shared.TestCase
TestShared.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
