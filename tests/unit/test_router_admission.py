"""Who is let in, who waits, who is turned away; and delivery that never holds up a round."""

from __future__ import annotations

import asyncio

import pytest
from paceline.router.admission import Admission
from paceline.router.mailbox import Mailbox
from paceline.router.requests import Committed, Completed
from paceline.speculation.errors import DeadlineExceeded, Overloaded, Unavailable
from paceline.speculation.messages import Finish, FinishReason


def committed(index: int) -> Committed:
    return Committed(index, (1,), (), "", "", "m", "", index, 0, 0, 0, 1)


async def test_places_are_given_in_order() -> None:
    admission, entered = Admission(1, 2), []

    async def visit(name: str) -> None:
        await admission.enter(1.0)
        entered.append(name)
        await asyncio.sleep(0.01)
        admission.leave(0.01)

    await asyncio.gather(*(visit(name) for name in "abc"))
    assert entered == list("abc")
    assert (admission.under_way, admission.waiting) == (0, 0)


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    admission = Admission(1, 0)
    await admission.enter(1.0)
    with pytest.raises(Overloaded) as caught:
        await admission.enter(1.0)
    assert 0 < caught.value.retry_after_s <= 60


async def test_waiting_ends_with_the_deadline() -> None:
    admission = Admission(1, 1)
    await admission.enter(1.0)
    with pytest.raises(DeadlineExceeded):
        await admission.enter(0.01)
    assert admission.waiting == 0
    admission.leave(0.1)
    assert admission.under_way == 0


async def test_a_cancelled_visitor_gives_up_its_place_in_the_queue() -> None:
    admission = Admission(1, 2)
    await admission.enter(1.0)
    waiting = [asyncio.create_task(admission.enter(1.0)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    admission.leave(0.1)
    await waiting[1]
    assert (admission.under_way, admission.waiting) == (1, 0)


async def test_a_place_given_to_a_visitor_cancelled_in_the_same_moment_is_passed_on() -> None:
    admission = Admission(1, 2)
    await admission.enter(1.0)
    waiting = [asyncio.create_task(admission.enter(1.0)) for _ in range(2)]
    await asyncio.sleep(0)
    admission.leave(0.1)
    waiting[0].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (admission.under_way, admission.waiting) == (1, 0)


async def test_events_come_out_in_order_and_the_error_last() -> None:
    mailbox = Mailbox()
    mailbox.put(committed(0))
    mailbox.put(committed(1))
    mailbox.fail(Unavailable("gone"))
    assert [(await mailbox.get()), (await mailbox.get())] == [committed(0), committed(1)]
    with pytest.raises(Unavailable):
        await mailbox.get()


async def test_a_client_that_does_not_read_ends_its_answer_and_blocks_nobody() -> None:
    mailbox = Mailbox(capacity=2)
    assert [mailbox.put(committed(index)) for index in range(4)] == [True, True, False, True]
    assert [(await mailbox.get()), (await mailbox.get())] == [committed(0), committed(1)]
    with pytest.raises(Overloaded, match="unread"):
        await mailbox.get()


async def test_the_end_fits_into_a_full_mailbox() -> None:
    mailbox, end = Mailbox(capacity=1), Completed(Finish(FinishReason.LENGTH), 1, 1)
    mailbox.put(committed(0))
    assert mailbox.put(end)
    await mailbox.get()
    assert await mailbox.get() is end
