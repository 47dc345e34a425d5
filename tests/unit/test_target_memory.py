"""A verifier over a real engine keeps its size, however many sessions come and go."""

from __future__ import annotations

import gc

import psutil
from paceline.engine.torch_engine import TorchEngine
from paceline.target.sessions import Limits
from paceline.target.verifier import Verifier

from tests.congruence.engine_tiny import VOCAB, configs, tiny_engine, tokens_of
from tests.unit.target_kit import opening, task

EARLY, LATE = 200, 1000


class Letters:
    def feed(self, token: int) -> str:
        return chr(97 + token % 26)


def answer(verifier: Verifier, engine: TorchEngine, number: int) -> None:
    """One session, its prompt perhaps shared, and two rounds of it."""
    name, seed = f"session {number}", number // 2
    source = opening(name, tokens_of(seed, 10 + seed % 60), max_tokens=20, temperature=1.0, seed=number)
    verifier.open(source, 0.0)
    committed: tuple[int, ...] = ()
    for round_id in (1, 2):
        drafts = tuple((token + 7) % VOCAB for token in range(number % 5))
        verifier.submit("r1", task(source, committed, drafts, round_id=round_id), 0.0)
        plan = verifier.plan(0.0)
        assert plan is not None
        verifier.complete(plan, engine.step(plan), 0.0)
        held = verifier.tokens(name)
        assert held is not None
        committed = held[len(source.tokens) :]
    assert len(committed) >= 2
    assert verifier.release(name, 1)


def test_the_resident_set_after_many_sessions_is_that_after_a_few() -> None:
    engine = tiny_engine(configs()["llama"], kv_tokens=1024)
    verifier = Verifier(engine, engine.info, limits=Limits(), incarnation="inc-1", detokenizer=Letters)
    process, sizes = psutil.Process(), {}
    for number in range(1, LATE + 1):
        answer(verifier, engine, number)
        if number in (EARLY, LATE):
            gc.collect()
            sizes[number] = process.memory_info().rss
            engine.check_integrity()
            assert engine._table.free_tokens == engine.info.kv_tokens
            assert engine._table.idle_tokens > engine.info.kv_tokens // 2
    assert sizes[LATE] <= 1.02 * sizes[EARLY], sizes
