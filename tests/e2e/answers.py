"""Answers as a client reads them: which tokens, and how long nothing came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from paceline_client import AsyncClient, Client, GenerateOptions, Generation, Speculation

from tests.e2e.hosting import Hosted, until

TOKENS = 96
PROMPT = "In a paceline the lead rider breaks the wind, and the riders behind"
SAMPLINGS: dict[str, GenerateOptions] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8, "seed": 20_261},
}


def options_of(sampling: str, speculation: Speculation, tokens: int = TOKENS) -> GenerateOptions:
    """Options of an answer of exactly so many tokens."""
    return {**SAMPLINGS[sampling], "max_tokens": tokens, "ignore_eos": True, "speculation": speculation}


def drafted_by(drafter: str) -> Speculation:
    """Four draft tokens each round."""
    return Speculation("fixed", 4, drafter)


@dataclass(slots=True)
class Reading:
    """One answer, with the seconds before each chunk but the first."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    gaps: list[float] = field(default_factory=list)
    acted_at: int = 0
    """Gaps there were when something was about to be done to the cluster."""
    done_at: int = 0
    """Tokens there were when it was done."""
    moved: bool = False
    """Whether the session got another lease since."""
    generation: Generation | None = None
    _last: float = 0.0

    def take(self, tokens: list[int], text: str) -> None:
        """A chunk came."""
        now = time.monotonic()
        if self.tokens:
            self.gaps.append(now - self._last)
        self._last = now
        self.tokens += tokens
        self.text += text

    @property
    def done(self) -> Generation:
        """The whole answer."""
        assert self.generation is not None
        return self.generation

    @property
    def longest(self) -> float:
        """The longest gap, of those since something was done."""
        return max(self.gaps[self.acted_at :])


def read(client: Client, prompt: str, options: GenerateOptions) -> Reading:
    """Read an answer."""
    reading = Reading()
    with client.stream(prompt, **options) as stream:
        for chunk in stream:
            reading.take([token.id for token in chunk.tokens], chunk.text)
        reading.generation = stream.result()
    return reading


async def read_and(
    client: AsyncClient,
    prompt: str,
    options: GenerateOptions,
    act: Callable[[], Awaitable[None]],
    *,
    after: int,
) -> Reading:
    """Read an answer, and do something to the cluster once so many tokens have come; reading goes on meanwhile."""
    reading, acting, epoch = Reading(), None, 0
    async with client.stream(prompt, **options) as stream:
        async for chunk in stream:
            reading.take([token.id for token in chunk.tokens], chunk.text)
            if acting is None and len(reading.tokens) >= after:
                reading.acted_at = len(reading.gaps)
                epoch, acting = stream.lease_epoch, asyncio.ensure_future(act())
                acting.add_done_callback(lambda _: setattr(reading, "done_at", len(reading.tokens)))
        reading.generation = await stream.result()
        reading.moved = stream.lease_epoch > epoch
    assert acting is not None, f"{len(reading.tokens)} tokens came, something was to happen after {after}"
    await acting
    return reading


@dataclass(frozen=True, slots=True)
class Place:
    """Who serves an answer."""

    replica: int  # process id
    target: str  # worker's name
    draft: str


async def place_of_only_answer(hosted: Hosted) -> Place:
    """Who serves the one answer that is under way; waits until it has both workers."""
    places: list[Place] = []

    async def found() -> bool:
        for pid, status in (await hosted.statuses()).items():
            workers = status["stats"]["workers"]
            held = {worker["side"]: worker["address"] for worker in workers if worker["sessions"]}
            if held.keys() == {"target", "draft"}:
                places.append(Place(pid, hosted.worker_at(held["target"]), hosted.worker_at(held["draft"])))
        return bool(places)

    await until(found, 5, "the answer to have a verifier and a draft worker", hosted.tails)
    return places[0]
