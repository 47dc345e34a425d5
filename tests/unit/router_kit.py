"""A router over real streams to scripted workers, for tests."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from paceline.router.requests import Committed, Completed, Event, Request, SamplingRequest
from paceline.router.router import Router
from paceline.runtime.config import RouterConfig

from tests.unit.router_workers import Scripted, ScriptedDraft, ScriptedTarget

PROMPT = (97, 98, 99)


@asynccontextmanager
async def cluster(
    targets: Sequence[ScriptedTarget], drafts: Sequence[ScriptedDraft] = (), **settings: Any
) -> AsyncIterator[Router]:
    workers: list[Scripted] = [*targets, *drafts]
    for worker in workers:
        await worker.start()
    config = RouterConfig(
        targets=tuple(worker.address for worker in targets),
        drafts=tuple(worker.address for worker in drafts),
        **({"draft_deadline_ms": 150, "reconnect_max_s": 0.5} | settings),
    )
    router = await Router.connect(config, rng=random.Random(7))
    try:
        yield router
    finally:
        await router.close()
        for worker in workers:
            await worker.kill()


def ask(count: int = 40, seed: int = 1, **fields: Any) -> Request:
    return replace(Request(tokens=PROMPT, sampling=SamplingRequest(max_tokens=count, seed=seed)), **fields)


async def collect(router: Router, request: Request) -> list[Event]:
    return [event async for event in router.generate(request)]


def tokens_of(events: Sequence[Event]) -> tuple[int, ...]:
    return tuple(token for event in events if isinstance(event, Committed) for token in event.tokens)


def completed(events: Sequence[Event]) -> Completed:
    last = events[-1]
    assert isinstance(last, Completed)
    return last
