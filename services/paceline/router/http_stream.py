"""Running an answer for an HTTP client, which may leave at any moment or stop reading."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from paceline.router.http_answers import Answer, Dialect
from paceline.router.http_errors import Json, dump, error_body, error_response
from paceline.router.ingress_backend import Backend
from paceline.router.ingress_context import REQUEST_ID_HEADER, SLOW_READER_S
from paceline.router.requests import Committed, Completed, Event, Request, Started
from paceline.speculation.errors import PacelineError

log = logging.getLogger(__name__)

_EVENT_STREAM = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect the stream
}


class ClientGone(PacelineError):
    """The client left, or read nothing for SLOW_READER_S seconds."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` until it ends or the client leaves; then it is cancelled, at once. Raises what it raised."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("the client left")
        working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Answering:
    """An ASGI response: one request to the router, answered whole or as server-sent events.

    One task runs the router's generator from its first event to its closing, so that deadlines and trace contexts
    inside it stay where they were set. Nothing is sent before the first event: a refusal has its own HTTP status.
    """

    def __init__(
        self,
        backend: Backend,
        request: Request,
        dialect: Dialect,
        *,
        stream: bool,
        usage: bool,
        slow_reader_s: float = SLOW_READER_S,
    ) -> None:
        self._backend, self._request, self._dialect = backend, request, dialect
        self._stream, self._usage, self._slow_reader_s = stream, usage, slow_reader_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._answer(scope, receive, self._bounded(send)))
        except ClientGone as error:
            log.info("request %s: %s", self._request.request_id, error)

    @property
    def _headers(self) -> dict[str, str]:
        return {REQUEST_ID_HEADER: self._request.request_id}

    def _bounded(self, send: Send) -> Send:
        """Send within bounds: a client that stops reading must not hold its session for ever."""

        async def bounded(message: Message) -> None:
            try:
                async with asyncio.timeout(self._slow_reader_s):
                    await send(message)
            except TimeoutError:
                raise ClientGone(f"the client read nothing for {self._slow_reader_s:g} s") from None

        return bounded

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._backend.generate(self._request)) as events:
            try:
                started = await _first(events)
                answer = Answer(self._dialect, started, self._usage)
                content = None if self._stream else await _collect(answer, events)
            except Exception as error:  # noqa: BLE001 - told to the caller; a bug is logged
                await error_response(error, self._headers)(scope, receive, send)
                return
            if content is None:
                await _send_events(answer, events, self._headers, send)
                return
        await Json(content, headers=self._headers)(scope, receive, send)


async def _first(events: AsyncIterator[Event]) -> Started:
    first = await anext(events)
    assert isinstance(first, Started), first
    return first


async def _collect(answer: Answer, events: AsyncIterator[Event]) -> dict[str, Any]:
    texts: list[str] = []
    completed: Completed | None = None
    async for event in events:  # to its end: a generator closed early would be an answer nobody wanted any more
        if isinstance(event, Started):  # moved to another numerics class
            answer.started = event
        elif isinstance(event, Committed):
            answer.models.add(event)
            texts.append(event.text)
        elif isinstance(event, Completed):
            completed = event
    assert completed is not None, "the router's events ended without Completed"
    return answer.whole("".join(texts), completed)


async def _send_events(answer: Answer, events: AsyncIterator[Event], headers: dict[str, str], send: Send) -> None:
    raw = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in (_EVENT_STREAM | headers).items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})
    async with aclosing(_chunks(answer, events)) as chunks:
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": b"data: " + chunk + b"\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _chunks(answer: Answer, events: AsyncIterator[Event]) -> AsyncGenerator[bytes, None]:
    """The data of each event; after an error there is no [DONE], so that no reader takes a part for the whole."""
    try:
        opening = answer.opening()
        if opening is not None:
            yield dump(opening)
        event: Event | None = None
        async for event in events:
            for chunk in _event_chunks(answer, event):
                yield dump(chunk)
        assert isinstance(event, Completed), "the router's events ended without Completed"
        yield b"[DONE]"
    except Exception as error:  # noqa: BLE001 - told to the caller; a bug is logged
        yield dump(error_body(error))


def _event_chunks(answer: Answer, event: Event) -> list[dict[str, Any]]:
    if isinstance(event, Started):  # moved to another numerics class: later chunks carry its fingerprint
        answer.started = event
        return []
    if isinstance(event, Committed):
        answer.models.add(event)
        return [answer.piece(event.text)] if event.text else []
    trailing = answer.trailing(event)
    return [answer.closing(event), *([] if trailing is None else [trailing])]
