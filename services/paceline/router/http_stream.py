"""Running an answer for an HTTP client, which may leave at any moment or stop reading."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from paceline.router.http_answers import Answer, Dialect
from paceline.router.http_choices import ChoiceEvent, events_of
from paceline.router.http_errors import Json, dump, error_body, error_response
from paceline.router.http_requests import Wanted
from paceline.router.ingress_backend import Backend
from paceline.router.ingress_context import REQUEST_ID_HEADER, SLOW_READER_S
from paceline.router.requests import Request
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
    """An ASGI response: one request to the router for each choice, answered whole or as server-sent events.

    Nothing is sent before the first event: a refusal has its own HTTP status.
    """

    def __init__(
        self,
        backend: Backend,
        request: Request,
        wanted: Wanted,
        dialect: Dialect,
        *,
        slow_reader_s: float = SLOW_READER_S,
    ) -> None:
        self._backend, self._request, self._stream = backend, request, wanted.stream
        self._answer = Answer(dialect, wanted, backend.token_texts)
        self._choices = [replace(request, choice=choice) for choice in range(wanted.n)]
        self._slow_reader_s = slow_reader_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._run(scope, receive, self._bounded(send)))
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

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(events_of(self._backend, self._choices)) as events:
            try:
                self._answer.take(*(first := await anext(events)))
                content = None if self._stream else await self._collect(events)
            except Exception as error:  # noqa: BLE001 - told to the caller; a bug is logged
                await error_response(error, self._headers)(scope, receive, send)
                return
            if content is None:
                await self._send_events(first, events, send)
                return
        await Json(content, headers=self._headers)(scope, receive, send)

    async def _collect(self, events: AsyncIterator[ChoiceEvent]) -> dict[str, Any]:
        async for index, event in events:  # to its end: one closed early would be an answer nobody wanted any more
            self._answer.take(index, event)
        assert self._answer.complete, "the router's events ended without Completed"
        return self._answer.whole()

    async def _send_events(self, first: ChoiceEvent, events: AsyncIterator[ChoiceEvent], send: Send) -> None:
        headers = (_EVENT_STREAM | self._headers).items()
        raw = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        async with aclosing(self._chunks(first, events)) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": b"data: " + chunk + b"\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _chunks(self, first: ChoiceEvent, events: AsyncIterator[ChoiceEvent]) -> AsyncGenerator[bytes, None]:
        """The data of each event; after an error there is no [DONE], so that no reader takes a part for the whole."""
        try:
            for chunk in self._answer.chunks(*first):
                yield dump(chunk)
            async for index, event in events:
                self._answer.take(index, event)
                for chunk in self._answer.chunks(index, event):
                    yield dump(chunk)
            assert self._answer.complete, "the router's events ended without Completed"
            yield b"[DONE]"
        except Exception as error:  # noqa: BLE001 - told to the caller; a bug is logged
            yield dump(error_body(error))
