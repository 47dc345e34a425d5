"""The events of several choices of one answer, as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from paceline.router.ingress_backend import Backend
from paceline.router.requests import Event, Request

ChoiceEvent = tuple[int, Event]
_UNREAD = 4  # events a choice may be ahead of the reader


async def events_of(backend: Backend, requests: Sequence[Request]) -> AsyncGenerator[ChoiceEvent, None]:
    """Each event with the number of its choice. An error in one ends all; closing the generator does, too.

    One task runs a choice's generator from its first event to its closing, so that deadlines and trace contexts inside
    it stay where they were set. For a single choice that is the caller's own task.
    """
    if len(requests) == 1:
        async with aclosing(backend.generate(requests[0])) as events:
            async for event in events:
                yield 0, event
        return
    ready: asyncio.Queue[ChoiceEvent | Exception | None] = asyncio.Queue(_UNREAD * len(requests))
    tasks = [asyncio.ensure_future(_run(backend, request, i, ready)) for i, request in enumerate(requests)]
    try:
        running = len(tasks)
        while running:
            item = await ready.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run(
    backend: Backend, request: Request, index: int, ready: asyncio.Queue[ChoiceEvent | Exception | None]
) -> None:
    try:
        async with aclosing(backend.generate(request)) as events:
            async for event in events:
                await ready.put((index, event))
        await ready.put(None)
    except Exception as error:  # noqa: BLE001 - raised where the events are read
        await ready.put(error)
