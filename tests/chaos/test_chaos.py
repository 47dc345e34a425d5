"""Answers for eight clients while parts of the cluster are killed at random times: not one token differs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from paceline.runtime.cluster import ClusterSpec
from paceline_client import AsyncClient, GenerateOptions, Speculation

from tests.e2e.answers import Reading, drafted_by, options_of
from tests.e2e.hosting import KILLABLE, Hosted, hosting, kill_process, on_failure

pytestmark = [pytest.mark.chaos, pytest.mark.model]

SEED = 20_261_122
WINDOW_S = 15.0
DRAFT_KILLS = 3
TOKENS = 48
CLIENTS = 8
ENDS_S = 120.0
SUBJECTS = ("cranks", "wheels", "gears", "brakes", "chains", "pedals", "saddles", "spokes")
KINDS = (Speculation(), drafted_by("ngram"), drafted_by("dspark"), Speculation("off"))
Tell = Callable[[str], None]


@dataclass(slots=True)
class Rider:
    """One client, which asks the same again and again, on a connection that it shares with some of the others."""

    client: AsyncClient
    prompt: str
    options: GenerateOptions
    expected: tuple[int, ...] = ()
    answers: list[Reading] = field(default_factory=list)

    async def ask(self) -> Reading:
        reading = Reading()
        async with self.client.stream(self.prompt, **self.options) as stream:
            async for chunk in stream:
                reading.take([token.id for token in chunk.tokens], chunk.text)
            reading.generation = await stream.result()
        assert tuple(reading.tokens) == reading.generation.token_ids
        return reading

    async def ask_until(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            self.answers.append(await self.ask())


@pytest.fixture(scope="module")
def cluster(demo_model: str) -> Iterator[Hosted]:
    spec = ClusterSpec(drafts=2, targets=2, routers=2, model=demo_model, threads=1, restart=KILLABLE)
    with hosting(spec) as hosted:
        yield hosted


async def test_no_kill_changes_a_token(cluster: Hosted, tell: Tell) -> None:
    async with on_failure(cluster.tails), AsyncExitStack() as stack:
        riders = [await rider(cluster, number, stack) for number in range(CLIENTS)]
        usual = await asyncio.wait_for(asyncio.gather(*(each.ask() for each in riders)), ENDS_S)
        for each, reading in zip(riders, usual, strict=True):
            each.expected = tuple(reading.tokens)
        deadline = time.monotonic() + WINDOW_S
        asking = asyncio.gather(*(each.ask_until(deadline) for each in riders))
        kills, _ = await asyncio.wait_for(
            asyncio.gather(kill_at_random(cluster, random.Random(SEED)), asking), WINDOW_S + ENDS_S
        )
    readings = [reading for each in riders for reading in each.answers]
    for each in riders:
        assert each.answers
        for reading in each.answers:
            assert tuple(reading.tokens) == each.expected, f"{each.prompt!r} {each.options}; kills: {kills}"
    resumes = sum(reading.done.resumes for reading in readings)
    assert resumes, "the killed replica served nobody"
    tell(
        f"chaos: {len(readings)} answers of {TOKENS} tokens, {resumes} resumes, longest gap "
        f"{max(reading.longest for reading in readings):.2f} s ({max(reading.longest for reading in usual):.2f} s "
        f"without a fault); kills: {', '.join(kills)}"
    )
    await cluster.until_whole()


async def rider(hosted: Hosted, number: int, stack: AsyncExitStack) -> Rider:
    """Half of them greedy; every kind of speculation."""
    # gRPC gives clients of one process a connection per spelling of the address: the kernel may spread them.
    address = hosted.address.replace("127.0.0.1", ("127.0.0.1", "localhost")[number % 2])
    client = await stack.enter_async_context(AsyncClient(address))
    options = options_of(("greedy", "sampled")[number // 4], KINDS[number % len(KINDS)], TOKENS)
    return Rider(client, f"The {SUBJECTS[number]} of a bicycle", options)


async def kill_at_random(hosted: Hosted, rng: random.Random) -> list[str]:
    """Draft workers several times, a verifier and a replica once; the latter two of those that serve."""
    jobs: list[tuple[str, Callable[[], Awaitable[str]]]] = [("verifier", lambda: kill_worker(hosted, "target"))]
    jobs += [("replica", lambda: kill_replica(hosted))]
    jobs += [("draft worker", lambda: kill_draft(hosted, rng))] * DRAFT_KILLS
    schedule = sorted((rng.uniform(0.5, WINDOW_S * 0.8), number) for number in range(len(jobs)))
    began, told = time.monotonic(), []
    for at, number in schedule:
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        name = await jobs[number][1]()
        told.append(f"{name} at {time.monotonic() - began:.1f} s")
    return told


async def busiest(hosted: Hosted, side: str) -> str:
    """The worker of a kind with most sessions."""
    sessions: dict[str, int] = {}
    for status in (await hosted.statuses(wanted=1)).values():
        for worker in status["stats"]["workers"]:
            if worker["side"] == side:
                sessions[worker["address"]] = sessions.get(worker["address"], 0) + worker["sessions"]
    return hosted.worker_at(max(sessions, key=lambda address: sessions[address]))


async def kill_worker(hosted: Hosted, side: str) -> str:
    name = await busiest(hosted, side)
    await hosted.kill(name)
    return name


async def kill_draft(hosted: Hosted, rng: random.Random) -> str:
    name = rng.choice(("draft-0", "draft-1"))
    await hosted.kill(name)  # one that is starting again already is dead
    return name


async def kill_replica(hosted: Hosted) -> str:
    told = await hosted.statuses(wanted=1)
    pid = max(told, key=lambda each: int(told[each]["stats"]["under_way"]))
    kill_process(pid)
    return "a replica"
