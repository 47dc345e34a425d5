"""A cluster for benches: real workers in processes of their own, the router's core in this one."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from paceline.router.requests import Committed, Completed, Request, SamplingRequest, Started
from paceline.router.router import Router
from paceline.runtime.cluster import LocalWorkers
from paceline.runtime.cluster_spec import ClusterSpec
from paceline.runtime.config import RouterConfig
from paceline.speculation.messages import RoundStats, TokenSource
from paceline.speculation.params import SpeculationMode, SpeculationParams

from bench.progress import Step, progress

OFF = SpeculationParams(mode=SpeculationMode.OFF)


def fixed(drafter: str, k: int) -> SpeculationParams:
    """Always ask ``drafter`` for ``k`` tokens."""
    return SpeculationParams(mode=SpeculationMode.FIXED, max_draft_tokens=k, drafter=drafter)


@dataclass(slots=True)
class Answer:
    """One answer, and where its time went."""

    prompt_tokens: tuple[int, ...] = ()
    tokens: list[int] = field(default_factory=list)
    sources: list[TokenSource] = field(default_factory=list)
    text: str = ""
    completed: Completed | None = None
    seconds: float = 0.0

    @property
    def stats(self) -> RoundStats:
        assert self.completed is not None
        return self.completed.stats


def first_difference(ours: Sequence[int], reference: Sequence[int]) -> int | None:
    """Index of the first differing token, the end of the shorter one included; None if they are the same."""
    pairs = itertools.zip_longest(ours, reference, fillvalue=-1)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), None)


def differing_tokens(got: Sequence[Answer], expected: Sequence[Answer]) -> int:
    """Tokens that differ between answers to the same prompts; prints where each answer begins to."""
    differing = 0
    for number, (ours, plain) in enumerate(zip(got, expected, strict=True)):
        where = first_difference(ours.tokens, plain.tokens)
        if where is not None:
            print(f"prompt {number} differs from position {where} on")
            pairs = itertools.zip_longest(ours.tokens, plain.tokens, fillvalue=-1)
            differing += sum(a != b for a, b in pairs)
    return differing


@asynccontextmanager
async def cluster(spec: ClusterSpec, **router: object) -> AsyncIterator[Router]:
    """Workers as ``spec`` says and a connected router with the given configuration fields."""
    async with LocalWorkers(spec) as workers:
        values = {"targets": workers.targets, "drafts": workers.drafts, **router}
        connected = await Router.connect(RouterConfig.model_validate(values))
        try:
            yield connected
        finally:
            await connected.close()


async def answer(router: Router, request: Request) -> Answer:
    """Generate one answer."""
    out = Answer()
    started = time.perf_counter()
    async for event in router.generate(request):
        match event:
            case Started():
                out.prompt_tokens = event.prompt_tokens
            case Committed():
                out.tokens += event.tokens
                out.sources += event.sources
                out.text += event.text
            case Completed():
                out.completed = event
    out.seconds = time.perf_counter() - started
    return out


async def answers(
    router: Router,
    texts: Sequence[str],
    sampling: SamplingRequest,
    speculation: SpeculationParams,
    *,
    concurrency: int = 1,
    label: str = "",
) -> list[Answer]:
    """Answer chat prompts, ``concurrency`` at a time, in the order of the prompts."""
    places = asyncio.Semaphore(concurrency)

    async def one(text: str, done: Step) -> Answer:
        async with places:
            messages = (("user", text),)
            out = await answer(router, Request(messages=messages, sampling=sampling, speculation=speculation))
            done()
            return out

    with progress(label or "answers", len(texts)) as done:
        return list(await asyncio.gather(*(one(text, done) for text in texts)))
