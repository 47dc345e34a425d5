"""A verifier over a fake engine that captures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from paceline.cache.target import Sample
from paceline.engine.fake import FakeEngine, FakeOptions
from paceline.speculation.messages import SessionOpen, Verdict
from paceline.target.capture import CapturingEngine, Choice
from paceline.target.sessions import Limits
from paceline.target.verifier import Verifier

from tests.unit.target_kit import VOCAB, Words, task

Store = Callable[[int, Callable[[], Sample]], bool]
LAYERS = (0, 2)
MEMORY = 1 << 20
FAKE = FakeOptions(vocab_size=VOCAB, order=3, seed=1)


def engine() -> FakeEngine:
    return FakeEngine(FAKE, kv_tokens=4096, sleep=None)


class Kept(list[Sample]):
    """A store that takes all it has room for."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room

    def put(self, size: int, make: Callable[[], Sample]) -> bool:
        self.room -= size
        if self.room >= 0:
            made = make()
            assert size >= made.hidden.nbytes + made.last_hidden.nbytes
            self.append(made)
        return self.room >= 0


class Target:
    """A verifier over a fake that captures."""

    def __init__(
        self, choice: Choice, *, room: int = 1 << 30, memory: int = MEMORY, store: Store | None = None, **limits: Any
    ) -> None:
        self.kept = Kept(room)
        put = store or self.kept.put
        self.engine = CapturingEngine(engine(), choice, layers=LAYERS, store=put, memory_bytes=memory)
        info = self.engine.info
        self.verifier = Verifier(self.engine, info, limits=Limits(**limits), incarnation="inc-1", detokenizer=Words)
        self.committed: dict[str, list[int]] = {}

    def open(self, source: SessionOpen) -> None:
        self.verifier.open(source, 0.0)
        self.committed[source.session_id] = []

    def submit(self, source: SessionOpen, round_id: int, drafts: Sequence[int] = ()) -> None:
        said = task(source, self.committed[source.session_id], drafts, round_id=round_id)
        self.verifier.submit(source.router_id, said, 0.0)

    def step(self) -> None:
        plan = self.verifier.plan(0.0)
        assert plan is not None
        for served in self.verifier.complete(plan, self.engine.step(plan), 0.0):
            if served.result is not None and isinstance(served.result.outcome, Verdict):
                self.committed[served.result.fence.session_id] += served.result.outcome.tokens

    def answer(self, source: SessionOpen, rounds: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """A session from its opening to its release, with these drafts; returns what the target said."""
        self.open(source)
        for round_id, drafts in enumerate(rounds, 1):
            self.submit(source, round_id, drafts)
            while self.verifier.waiting:
                self.step()
        self.verifier.release(source.session_id, source.lease_epoch)
        return tuple(self.committed[source.session_id])


ALL = Choice(frozenset({"*"}))
