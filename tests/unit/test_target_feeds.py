"""Which features go where, and how far they have got."""

from __future__ import annotations

from paceline.engine.interface import Slice, StepPlan
from paceline.speculation.features import FeatureChunk, FeatureWant, Feed
from paceline.speculation.params import SamplingParams
from paceline.target.feeds import CHUNK_BYTES, Feeds, Rows

ROW = 4
HOME, AWAY = Feed("d0:1", "inc", 3, "p"), Feed("d1:1", "inc-1", 5, "p")
MUCH = 10**9


def feeds() -> Feeds:
    return Feeds({"p": ROW}, "float32")


def connected(ready: int = 20) -> Feeds:
    """With session s, which goes to HOME and is wanted from the beginning."""
    made = feeds()
    made.ready("s", ready)
    made.point("s", HOME)
    made.connected(HOME.address)
    [offer] = made.outgoing(HOME.address)
    assert offer == FeatureChunk("s", 3, "inc", "p", dtype="float32")
    made.credited(HOME.address, MUCH, [FeatureWant("s", 3, 0)])
    return made


def data(rows: Rows) -> bytes:
    return b"".join(at.to_bytes(ROW, "little") for at in range(rows.start, rows.end))


def gather(made: Feeds, address: str = HOME.address) -> list[FeatureChunk]:
    rows = made.due(address)
    if rows is not None:
        made.gathered(rows, data(rows))
    return made.outgoing(address)


def step(start: int, count: int) -> StepPlan:
    return StepPlan(1, (Slice("s", start, (1,) * count, 1, SamplingParams(), 1),))


def test_nothing_is_sent_before_the_draft_worker_said_where_to_begin() -> None:
    made = feeds()
    made.ready("s", 20)
    made.point("s", HOME)
    assert made.addresses == {HOME.address}
    assert made.outgoing(HOME.address) == []
    made.connected(HOME.address)
    assert [chunk.count for chunk in made.outgoing(HOME.address)] == [0]
    made.credited(HOME.address, MUCH, [])
    assert made.due(HOME.address) is None
    made.credited(HOME.address, 0, [FeatureWant("s", 3, 7)])
    [chunk] = gather(made)
    assert (chunk.position, chunk.count) == (7, 13)
    assert chunk.data == data(Rows("s", HOME, 7, 20))
    assert gather(made) == []


def test_rows_of_a_step_go_at_once_without_those_that_were_rejected() -> None:
    made = connected()
    assert made.of_step(step(20, 4)) == []  # the past goes first
    gather(made)
    [rows] = made.of_step(step(20, 4))
    assert rows == Rows("s", HOME, 20, 24)
    made.ready("s", 22)  # the anchor and one draft were committed
    made.computed(rows, data(rows))
    [chunk] = made.outgoing(HOME.address)
    assert (chunk.position, chunk.count, chunk.data) == (20, 2, data(rows)[: 2 * ROW])
    [again] = made.of_step(step(22, 1))
    made.computed(again, data(again))  # a step that committed nothing
    assert made.outgoing(HOME.address) == []
    assert made.of_step(step(22, 1))


def test_features_nobody_drafts_from_wait_for_a_round_that_is_followed_by_a_question() -> None:
    made = connected()
    gather(made)
    made.point("s", HOME, later=True)
    assert made.of_step(step(20, 3)) == []
    made.ready("s", 23)
    assert made.due(HOME.address) is None
    made.point("s", HOME)
    assert made.of_step(step(23, 1)) == []  # the past goes first
    made.ready("s", 24)
    assert [(chunk.position, chunk.count) for chunk in gather(made)] == [(20, 4)]
    assert made.of_step(step(24, 1)) == [Rows("s", HOME, 24, 25)]
    made.check_integrity()


def test_no_more_is_sent_than_there_is_credit_for() -> None:
    made = feeds()
    made.ready("s", 20)
    made.point("s", HOME)
    made.connected(HOME.address)
    made.credited(HOME.address, 6 * ROW + 3, [FeatureWant("s", 3, 0)])
    assert [chunk.count for chunk in gather(made)[1:]] == [6]
    assert made.due(HOME.address) is None
    assert made.of_step(step(6, 1)) == []
    made.credited(HOME.address, ROW, [])
    assert [chunk.count for chunk in gather(made)] == [1]
    made.check_integrity()


def test_long_pasts_go_in_chunks_and_those_who_lack_least_first() -> None:
    made = connected(ready=CHUNK_BYTES)
    made.ready("short", 5)
    made.point("short", Feed(HOME.address, "inc", 4, "p"))
    made.credited(HOME.address, 0, [FeatureWant("short", 4, 2)])
    sent = [chunk for _ in range(9) for chunk in gather(made) if chunk.count]
    assert sent[0].session_id == "short"
    assert [chunk.position for chunk in sent[1:]] == [
        0,
        CHUNK_BYTES // ROW,
        2 * CHUNK_BYTES // ROW,
        3 * CHUNK_BYTES // ROW,
    ]
    assert all(len(chunk.data) <= CHUNK_BYTES for chunk in sent)


def test_a_draft_worker_that_lost_count_is_sent_again_what_it_wants() -> None:
    made = connected()
    gather(made)
    made.credited(HOME.address, 0, [FeatureWant("s", 3, 11), FeatureWant("s", 2, 0), FeatureWant("x", 3, 0)])
    assert [(chunk.position, chunk.count) for chunk in gather(made)] == [(11, 9)]


def test_a_refusal_holds_until_the_next_round() -> None:
    made = connected()
    made.credited(HOME.address, 0, [FeatureWant("s", 3, refused=True)])
    assert made.due(HOME.address) is None
    made.point("s", HOME)
    assert [chunk.count for chunk in made.outgoing(HOME.address)] == [0]
    made.point("s", HOME)
    assert made.outgoing(HOME.address) == []


def test_a_new_lease_begins_anew_and_what_was_gathered_for_the_old_one_is_left() -> None:
    made = connected()
    rows = made.due(HOME.address)
    assert rows is not None
    made.point("s", AWAY)
    made.gathered(rows, data(rows))
    assert made.outgoing(HOME.address) == []
    made.connected(AWAY.address)
    [offer] = made.outgoing(AWAY.address)
    assert (offer.incarnation, offer.lease_epoch, offer.count) == ("inc-1", 5, 0)
    made.credited(AWAY.address, MUCH, [FeatureWant("s", 5, 0)])
    assert [chunk.count for chunk in gather(made, AWAY.address)] == [20]


def test_a_broken_stream_is_offered_everything_anew() -> None:
    made = connected()
    rows = made.due(HOME.address)
    assert rows is not None
    made.lost(HOME.address)
    made.gathered(rows, None)
    assert made.due(HOME.address) is None
    made.connected(HOME.address)
    assert [chunk.count for chunk in made.outgoing(HOME.address)] == [0]
    made.credited(HOME.address, MUCH, [FeatureWant("s", 3, 12)])
    assert [(chunk.position, chunk.count) for chunk in gather(made)] == [(12, 8)]


def test_sessions_that_are_gone_or_not_ours_to_feed_go_nowhere() -> None:
    made = connected()
    made.drop("s")
    assert not made.addresses
    assert made.due(HOME.address) is None
    made.point("s", HOME)  # a round of a session that isn't held
    made.ready("other", 9)
    made.point("other", Feed("d0:1", "inc", 1, "another projector"))
    made.point("other", None)
    assert not made.addresses
    plain = Feeds({})
    plain.ready("s", 9)
    plain.point("s", HOME)
    assert not plain.addresses
