"""A call that reads and answers at the same time: whichever of the two ends, however it ends, so does the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from paceline.runtime.streams import RouterStream, reading
from paceline.speculation.errors import InvalidRequest, Overloaded

LIMIT_S = 5.0


class Aborted(Exception):
    """What grpc's context raises to end a call."""


class FakeContext:
    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> None:
        self.code = code
        raise Aborted(details)


class Answers(RouterStream):
    def _overflow(self, message: Any) -> None:
        self.failure = Overloaded("nobody reads", retry_after_s=1.0)
        self._unsent.get_nowait()
        self.close()


class Call:
    """A call whose requests are echoed until they end, fail or are no longer read."""

    def __init__(self, max_unsent: int = 8) -> None:
        self.context: Any = FakeContext()
        self.stream = Answers(max_unsent)
        self.requests: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.reading = "not yet"

    async def answers(self) -> AsyncIterator[str]:
        async with reading(self._read(), self.stream, self.context):
            async for message in self.stream:
                yield message

    async def _read(self) -> None:
        self.reading = "under way"
        try:
            while (request := await self.requests.get()) is not None:
                if isinstance(request, Exception):
                    raise request
                self.stream.send(request)
        finally:
            self.reading = "over"


async def all_of(answers: AsyncIterator[str]) -> list[str]:
    async with asyncio.timeout(LIMIT_S):
        return [answer async for answer in answers]


async def test_when_requests_end_what_is_queued_is_still_sent() -> None:
    call = Call()
    for request in ("a", "b", None):
        call.requests.put_nowait(request)
    assert await all_of(call.answers()) == ["a", "b"]
    assert (call.reading, call.context.code) == ("over", None)


async def test_when_answers_end_requests_are_no_longer_read() -> None:
    call = Call()
    call.requests.put_nowait("a")
    answers = call.answers()
    assert await anext(answers) == "a"
    assert call.reading == "under way"
    call.stream.close()
    assert await all_of(answers) == []
    assert (call.reading, call.context.code) == ("over", None)


async def test_a_request_that_is_refused_ends_the_call_by_name() -> None:
    call = Call()
    call.requests.put_nowait("a")
    call.requests.put_nowait(InvalidRequest("tasks", expected="a task", got="none"))
    with pytest.raises(Aborted, match="tasks: expected a task"):
        await all_of(call.answers())
    assert call.context.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_answers_that_fail_end_the_call_by_name() -> None:
    call = Call(max_unsent=2)
    for request in ("a", "b", "c"):
        call.requests.put_nowait(request)
    with pytest.raises(Aborted, match="nobody reads"):
        await all_of(call.answers())
    assert (call.reading, call.context.code) == ("over", grpc.StatusCode.RESOURCE_EXHAUSTED)


async def test_a_caller_that_leaves_is_no_longer_read() -> None:
    call = Call()
    call.requests.put_nowait("a")
    answers = call.answers()
    assert await anext(answers) == "a"
    await answers.aclose()  # type: ignore[attr-defined]
    assert (call.reading, call.context.code) == ("over", None)
