"""Features as they come in: which are taken, what is asked for, and how long drafts wait for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paceline.draft.intake import WAIT_S, WINDOW_BYTES
from paceline.draft.lane import FEW_ROWS
from paceline.draft.worker import DraftWorker
from paceline.drafters.interface import Ask, DraftSession, Features
from paceline.speculation.digest import PrefixDigest
from paceline.speculation.features import FeatureChunk, FeatureWant
from paceline.speculation.messages import DraftTask, Fence, Proposal, SessionOpen
from paceline.speculation.params import SamplingParams

PROMPT = tuple(range(10, 30))
WIDTH, ROW = 3, 6


class Reader:
    """A drafter that drafts as many tokens as it was fed positions."""

    name = "reader"
    model_id = "reader"
    needs_features = True
    projector = "p"
    feature_width = WIDTH

    def __init__(self) -> None:
        self.fed: list[Features] = []
        self.forgets: set[str] = set()

    def open(self, session: DraftSession) -> None:
        self.fed.clear()

    def close(self, session_id: str) -> None:
        pass

    def feed(self, features: Sequence[Features]) -> None:
        self.fed.extend(features)

    def forgotten(self) -> frozenset[str]:
        out, self.forgets = frozenset(self.forgets), set()
        return out

    def propose(self, asks: Sequence[Ask]) -> list[Proposal]:
        count = sum(each.count for each in self.fed)
        return [Proposal((7,) if count == ask.base_len - 1 else (), self.name, self.model_id) for ask in asks]


def worker_of(reader: Reader) -> DraftWorker:
    worker = DraftWorker([reader], "reader", incarnation="inc")
    worker.intake.opened("line")
    told = worker.intake.reply("line")
    assert told is not None
    assert (told.credit, told.wants) == (WINDOW_BYTES, ())
    worker.open(SessionOpen("s", 4, "r", PROMPT, len(PROMPT), SamplingParams(max_tokens=40)), 0.0)
    return worker


def chunk(position: int, count: int, **fields: object) -> FeatureChunk:
    made = FeatureChunk("s", 4, "inc", "p", position, count, bytes(count * ROW), "bfloat16")
    return replace(made, **fields)  # type: ignore[arg-type]


def task(round_id: int, *, deadline_us: int = 0) -> DraftTask:
    fence = Fence("s", "inc", 4, round_id, len(PROMPT), PrefixDigest(PROMPT).value)
    return DraftTask(fence, (), len(PROMPT), 4, deadline_us=deadline_us)


def wants(worker: DraftWorker) -> list[tuple[int, bool]]:
    told = worker.intake.reply("line")
    return [(want.position, want.refused) for want in told.wants] if told is not None else []


def run(worker: DraftWorker, now: float = 0.0) -> list[int] | None:
    """How many tokens each answer has; None if nothing was due."""
    batch = worker.plan("reader", now)
    if batch is None:
        return None
    answers = worker.complete(batch, worker.run(batch, lambda: now), now)
    worker.check_integrity()
    return [len(result.outcome.tokens) for _, result in answers if isinstance(result.outcome, Proposal)]


def test_an_offer_is_answered_with_where_to_go_on_and_features_reach_the_drafter() -> None:
    reader = Reader()
    worker = worker_of(reader)
    worker.feed("line", chunk(0, 0))
    assert wants(worker) == [(0, False)]
    worker.feed("line", chunk(0, 12))
    worker.feed("line", chunk(10, 9))  # of which two are known
    assert worker.submit("r", task(1), 0.0) is None
    assert run(worker) == [1]
    assert [(each.start, each.count, len(each.data)) for each in reader.fed] == [(0, 12, 72), (12, 7, 42)]
    told = worker.intake.reply("line")
    assert told is not None
    assert told.credit == 21 * ROW  # used up, those that were known as well


def test_a_few_features_are_taken_in_with_a_question_and_many_by_themselves() -> None:
    reader = Reader()
    worker = DraftWorker([reader], "reader", incarnation="inc")
    prompt = tuple(range(200))
    worker.open(SessionOpen("s", 4, "r", prompt, len(prompt), SamplingParams(max_tokens=9)), 0.0)
    run(worker)
    worker.feed("line", chunk(0, FEW_ROWS - 1))
    assert run(worker) is None
    worker.feed("line", chunk(FEW_ROWS - 1, 1))
    assert run(worker) == []
    assert [(each.start, each.count) for each in reader.fed] == [(0, FEW_ROWS - 1), (FEW_ROWS - 1, 1)]


def test_a_gap_is_told_once() -> None:
    worker = worker_of(Reader())
    worker.feed("line", chunk(0, 5))
    for _ in range(3):
        worker.feed("line", chunk(9, 2))
    assert wants(worker) == [(5, False)]
    worker.feed("line", chunk(5, 1))
    worker.feed("line", chunk(9, 2))
    assert wants(worker) == [(6, False)]


def test_what_is_meant_for_another_is_refused() -> None:
    worker = worker_of(Reader())
    wrong = [
        chunk(0, 1, lease_epoch=3), chunk(0, 1, incarnation="other"), chunk(0, 1, projector="q"),
        chunk(0, 1, session_id="unknown"), chunk(0, 1, dtype="int8"), chunk(0, 1, data=b"123"),
        chunk(0, 60),  # more than the session can come to
    ]  # fmt: skip
    for each in wrong:
        worker.feed("line", each)
        told = worker.intake.reply("line")
        assert told is not None
        assert told.wants == (FeatureWant(each.session_id, each.lease_epoch, refused=True),)
        assert told.credit == len(each.data)
    assert run(worker) == []  # nothing but the opening


def test_a_draft_waits_for_its_last_features_and_not_for_long() -> None:
    worker = worker_of(Reader())
    worker.feed("line", chunk(0, 15))
    run(worker)
    assert worker.submit("r", task(1), 1.0) is None
    assert run(worker, 1.0) is None  # four rows are missing: they left the target before the ask did
    assert worker.held_until("reader") == 1.0 + WAIT_S
    worker.feed("line", chunk(15, 4))
    assert run(worker, 1.001) == [1]
    assert worker.held_until("reader") is None


def test_who_waited_in_vain_does_not_wait_again_until_features_come() -> None:
    worker = worker_of(Reader())
    worker.feed("line", chunk(0, 15))
    run(worker)
    worker.submit("r", task(1), 1.0)
    assert run(worker, 1.0) is None
    assert run(worker, 1.0 + WAIT_S) == [0]
    worker.submit("r", task(2), 2.0)
    assert run(worker, 2.0) == [0]
    worker.feed("line", chunk(15, 4))
    worker.submit("r", task(3), 3.0)
    assert run(worker, 3.0) == [1]


def test_a_short_deadline_shortens_the_wait() -> None:
    worker = worker_of(Reader())
    worker.feed("line", chunk(0, 15))
    run(worker)
    worker.submit("r", task(1, deadline_us=8000), 1.0)
    assert run(worker, 1.0) is None
    assert worker.held_until("reader") == 1.002


def test_nobody_waits_for_a_long_past() -> None:
    worker = DraftWorker([Reader()], "reader", incarnation="inc")
    prompt = tuple(range(200))
    worker.open(SessionOpen("s", 4, "r", prompt, len(prompt), SamplingParams(max_tokens=9)), 0.0)
    run(worker)
    fence = Fence("s", "inc", 4, 1, len(prompt), PrefixDigest(prompt).value)
    worker.submit("r", DraftTask(fence, (), len(prompt), 4), 0.0)
    assert run(worker) == [0]


def test_what_was_forgotten_is_wanted_again_when_drafts_are_asked_for_ever_less_readily() -> None:
    reader = Reader()
    worker = worker_of(reader)
    asked = []
    for round_id in range(1, 12):
        told = wants(worker)
        if told:
            asked.append(round_id)
            worker.feed("line", chunk(0, 19))
        if round_id == 1:
            worker.feed("line", chunk(0, 19))
        reader.forgets = {"s"}
        run(worker)
        worker.submit("r", task(round_id), 0.0)
        run(worker)
    assert asked == [2, 4, 8]


def test_a_released_session_gives_its_credit_back() -> None:
    worker = worker_of(Reader())
    worker.feed("line", chunk(0, 5))
    worker.release("s", 4)
    told = worker.intake.reply("line")
    assert told is not None
    assert told.credit == 5 * ROW
    worker.intake.closed("line")
    worker.feed("line", chunk(0, 5))
    assert worker.intake.reply("line") is None
