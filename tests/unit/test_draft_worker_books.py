"""The draft worker's books under any interleaving of openings, rounds, releases and runs of two lanes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from paceline.draft.lane import Answer, Batch
from paceline.draft.worker import DraftWorker
from paceline.speculation.errors import Overloaded

from tests.unit.draft_kit import INCARNATION, CountingDrafter, opening, task

PROMPT = (1, 2, 3)
NAMES = st.sampled_from("abcde")
LANES = st.sampled_from(["fast", "slow"])
ROUTERS = st.sampled_from("rq")


class Books(RuleBasedStateMachine):
    """Every answer is to the round its session was asked last, under the lease it has."""

    def __init__(self) -> None:
        super().__init__()
        self.drafters = {name: CountingDrafter(name) for name in ("fast", "slow")}
        self.worker = DraftWorker(
            [*self.drafters.values()], "fast", incarnation=INCARNATION, max_sessions=4, max_queue=3, session_ttl_s=9
        )
        self.running: dict[str, Batch] = {}
        self.now = 0.0
        self.epoch = self.round_id = 0
        self.leases: dict[str, int] = {}
        self.due: dict[str, int] = {}  # session -> the round that waits for its answer

    @rule(name=NAMES, lane=LANES, router=ROUTERS)
    def open(self, name: str, lane: str, router: str) -> None:
        self.epoch += 1
        try:
            self.worker.open(opening(name, lease_epoch=self.epoch, drafter=lane, router_id=router), self.now)
        except Overloaded:
            assert self.worker.sessions == 4
        else:
            self.leases[name] = self.epoch
            self.due.pop(name, None)

    @rule(name=NAMES, newer=st.booleans(), seconds=st.sampled_from([0.0, 0.001, 5.0]))
    def round(self, name: str, newer: bool, seconds: float) -> None:
        self.round_id += newer
        asked = task(
            PROMPT,
            session_id=name,
            round_id=self.round_id,
            epoch=self.leases.get(name, 0),
            deadline_us=int(seconds * 1e6),
        )
        if self.worker.submit("r", asked, self.now) is None:
            self.due[name] = self.round_id
        elif newer:
            self.due.pop(name, None)

    @rule(name=NAMES)
    def release(self, name: str) -> None:
        if self.worker.release(name, self.leases.get(name, 0)):
            self.due.pop(name, None)

    @rule(router=ROUTERS)
    def drop_router(self, router: str) -> None:
        self.worker.drop_router(router)

    @rule(seconds=st.sampled_from([0.01, 4.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.worker.expire(self.now)

    @rule(lane=LANES)
    def plan(self, lane: str) -> None:
        batch = self.worker.plan(lane, self.now)
        if batch is not None:
            assert lane not in self.running
            self.running[lane] = batch
            for answer in batch.expired:
                self.check(answer)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), works=st.booleans())
    def complete(self, data: st.DataObject, works: bool) -> None:
        batch = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        outcome = self.worker.run(batch, lambda: self.now)
        for answer in self.worker.complete(batch, outcome if works else None, self.now):
            self.check(answer)

    def check(self, answer: Answer) -> None:
        fence = answer[1].fence
        assert fence.lease_epoch == self.leases[fence.session_id]
        assert self.due.pop(fence.session_id) == fence.round_id

    @invariant()
    def books_add_up(self) -> None:
        self.worker.check_integrity()

    def teardown(self) -> None:
        for lane, batch in self.running.items():
            self.worker.complete(batch, self.worker.run(batch, lambda: self.now), self.now)
            assert lane == batch.drafter.name
        for lane in self.drafters:
            last = self.worker.plan(lane, self.now)
            if last is not None:
                self.worker.complete(last, self.worker.run(last, lambda: self.now), self.now)
        assert sum(len(drafter.sessions) for drafter in self.drafters.values()) == self.worker.sessions


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
