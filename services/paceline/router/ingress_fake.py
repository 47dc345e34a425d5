"""A router that answers from a script: what the ingresses are tested against."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paceline.router.requests import Committed, Completed, Event, Model, Request, SamplingRequest, Started, Waits
from paceline.speculation.messages import Finish, FinishReason, RoundStats, TokenLogprobs, TokenSource, Verdict

MODEL = Model("fake", "f" * 64, "c" * 64, 4096, ("ngram",), targets=1, drafts=1)
STOPPED = Finish(FinishReason.STOP, stop_token_id=2)


@dataclass(frozen=True, slots=True)
class Round:
    """One round of the script: its text, and what was drafted, verified and accepted."""

    text: str
    drafted: int = 0
    verified: int = 0
    accepted: int = 0

    def verdict(self) -> Verdict:
        """What the target would have said."""
        if not self.verified:
            last = TokenSource.TARGET_ONLY
        else:
            last = TokenSource.BONUS if self.accepted == self.verified else TokenSource.CORRECTED
        sources = (*[TokenSource.ACCEPTED] * self.accepted, last)
        return Verdict(tuple(range(len(sources))), sources, self.verified, self.accepted, self.text)


ROUNDS = (Round("Once "), Round("upon a ", 4, 3, 2), Round("time", 3, 3, 3), Round(".", 2, 2, 0))


@dataclass(slots=True)
class ScriptedRouter:
    """Answers every request with the same rounds.

    ``refuse`` is raised before the first event, ``fail`` after the last round; with ``hold`` the answer waits, after
    its rounds, until it is closed.
    """

    rounds: Sequence[Round] = ROUNDS
    finish: Finish = STOPPED
    pause_s: float = 0.0
    refuse: Exception | None = None
    fail: Exception | None = None
    hold: bool = False
    served: tuple[Model, ...] = (MODEL,)
    requests: list[Request] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first request."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an answer ended before it was complete."""
    shut: bool = False

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        self.asked.set()
        if self.refuse is not None:
            raise self.refuse
        try:
            async for event in self._events(request):
                yield event
        except (GeneratorExit, asyncio.CancelledError):
            self.closed.set()
            raise

    async def _events(self, request: Request) -> AsyncGenerator[Event, None]:
        seed = request.sampling.seed or 7
        session = "session-1"
        model = MODEL
        prompt = request.tokens or (1, 2, 3)
        yield Started(
            request.request_id or "made", session, "fake", model.fingerprint, model.numerics_class, prompt, seed, 1
        )
        stats, index = RoundStats(), 0
        for number, each in enumerate(self.rounds, start=1):
            await asyncio.sleep(self.pause_s)
            verdict = _scored(each.verdict(), request.sampling, prompt if not index else ())
            stats.add(verdict, each.drafted, missed=False)
            yield _committed(each, verdict, index, number)
            index += len(verdict.tokens)
        if self.fail is not None:
            raise self.fail
        if self.hold:
            await asyncio.Event().wait()
        yield Completed(self.finish, len(prompt), index, stats, Waits(10, 20, 30, 40))

    def models(self) -> Sequence[Model]:
        return self.served

    def token_texts(self, model: str) -> Callable[[int], str]:
        return lambda token: f"t{token}"

    def stats(self) -> Mapping[str, Any]:
        return {"sessions": 0}

    async def close(self) -> None:
        self.shut = True


def _scored(verdict: Verdict, sampling: SamplingRequest, prompt: Sequence[int]) -> Verdict:
    """With log probabilities as asked for: of token t it is -t, and the likeliest ones are 50, 51, …"""

    def scores(tokens: Sequence[int], likeliest: int) -> tuple[TokenLogprobs, ...]:
        top = tuple(range(50, 50 + likeliest))
        return tuple(
            TokenLogprobs(-float(token), 9, top, tuple(-0.5 * i for i in range(likeliest))) for token in tokens
        )

    if sampling.logprobs is not None:
        verdict = replace(verdict, logprobs=scores(verdict.tokens, sampling.logprobs))
    if sampling.prompt_logprobs is not None:
        verdict = replace(verdict, prompt_logprobs=scores(prompt[1:], sampling.prompt_logprobs))
    return verdict


def _committed(each: Round, verdict: Verdict, index: int, number: int) -> Committed:
    return Committed(
        index=index,
        tokens=verdict.tokens,
        sources=verdict.sources,
        text=each.text,
        proposer_model_id="ngram" if each.accepted else "",
        verifier_model_id="fake",
        drafter="ngram" if each.drafted else "",
        round_id=number,
        drafted=each.drafted,
        verified=each.verified,
        accepted=each.accepted,
        lease_epoch=1,
        logprobs=verdict.logprobs,
        prompt_logprobs=verdict.prompt_logprobs,
    )
