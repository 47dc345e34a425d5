"""The router: admits requests, fills in their defaults, and hands each client the events of its answer.

Rounds are the dispatcher's, connections the driver's; nothing here is on the path of a round.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from paceline.router.admission import Admission
from paceline.router.answers import Answer
from paceline.router.counters import RouterStats
from paceline.router.dispatcher import Dispatcher
from paceline.router.driver import Driver
from paceline.router.mailbox import Mailbox
from paceline.router.pairing import Registry
from paceline.router.placement import Policy
from paceline.router.requests import Completed, Event, Model, Request, Started
from paceline.router.resolve import Resolved, prompt_tokens, resolve
from paceline.router.spans import NoSpans, RouterSpans
from paceline.runtime.config import RouterConfig
from paceline.speculation.errors import NotFound, Overloaded, PacelineError, StaleLease, Unavailable
from paceline.speculation.leases import Side
from paceline.speculation.rounds import Session

CONNECT_TIMEOUT_S = 10.0
SETTLE_S = 1.0  # how much longer connect() waits for the other workers once a target is up
LONG_TEXT = 4096  # characters; longer prompts are tokenized in a thread, so that rounds go on


def policy_of(config: RouterConfig) -> Policy:
    """The dispatcher's part of the configuration."""
    return Policy(
        draft_deadline_s=config.draft_deadline_ms / 1e3,
        verify_deadline_s=config.verify_deadline_ms / 1e3,
        open_deadline_s=min(10.0, config.verify_deadline_ms / 1e3),
        grace_s=2 * config.reconnect_max_s,
        retry_max_s=config.reconnect_max_s,
        default_k=config.default_draft_tokens,
        cohorts=config.cohorts,
    )


class Router:
    """Answers requests with the workers of one configuration. Make it with ``connect``; it belongs to one event loop.

    Args:
        clock: monotonic seconds.
        rng: seeds and ids are drawn from it; by default the operating system's.
        spans: telemetry.
    """

    def __init__(
        self,
        config: RouterConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        spans: RouterSpans | None = None,
    ) -> None:
        self.config = config
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._spans: RouterSpans = spans or NoSpans()
        self.router_id = f"router-{self._rng.getrandbits(64):016x}"
        policy = policy_of(config)
        self._registry = Registry(draft_deadline_s=policy.draft_deadline_s, breaker_max_s=config.reconnect_max_s)
        self._dispatcher = Dispatcher(policy, self._registry, spans=self._spans, perf=time.perf_counter)
        self._driver = Driver(
            config,
            self._dispatcher,
            deliver=self._deliver,
            router_id=self.router_id,
            clock=clock,
            perf=time.perf_counter,
            rng=self._rng,
        )
        self._admission = Admission(config.max_sessions, config.max_waiting)
        self._mail: dict[str, Mailbox] = {}
        self._closed = False

    @classmethod
    async def connect(
        cls,
        config: RouterConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        spans: RouterSpans | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> Router:
        """Start connecting to all workers; returns once a target is up and the others had a moment to come.

        Workers that are away are tried again for as long as the router lives.

        Raises:
            Unavailable: no target was reached within ``timeout_s``.
        """
        router = cls(config, clock=clock, rng=rng, spans=spans)
        await router._start(timeout_s)
        return router

    async def _start(self, timeout_s: float) -> None:
        registry, everybody = self._registry, len(self.config.targets) + len(self.config.drafts)
        self._driver.start()
        if not await self._driver.until(lambda: registry.up(Side.TARGET) > 0, timeout_s):
            await self.close()
            raise Unavailable(f"no target verifier reached ({self._driver.unreached(Side.TARGET)})")
        await self._driver.until(lambda: registry.up(Side.TARGET) + registry.up(Side.DRAFT) == everybody, SETTLE_S)

    async def close(self) -> None:
        """End every answer with Unavailable and let go of the workers."""
        self._closed = True
        why = Unavailable("the router is closing")
        for session_id, mailbox in list(self._mail.items()):
            mailbox.fail(why)
            self._dispatcher.cancel(session_id, self._clock(), why)
        await self._driver.close()

    # Answers ----------------------------------------------------------------------------------------------------

    def models(self) -> list[Model]:
        """Models served, and by how many workers just now."""
        return self._registry.models()

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """One answer: Started, Committed per round, Completed. Closing the generator ends it on both workers at once.

        Raises:
            NotFound: no such model; InvalidRequest: a field is wrong; Overloaded: too many wait already;
            DeadlineExceeded: the request's deadline passed; StaleLease: the answer is held under a newer lease;
            Unavailable: no verifier can go on with it.
        """
        deadline = self._clock() + (request.timeout_s or self.config.request_timeout_s)
        if not request.request_id:
            request = replace(request, request_id=f"r-{self._rng.getrandbits(96):024x}")
        span = self._spans.start_request(request)
        try:
            resolved = await self._resolve(request)
            self._spans.place(span, resolved.spec.session_id, resolved.spec.sampling.seed)
            await self._admission.enter(deadline - self._clock())
        except BaseException as error:
            self._spans.end_request(span, error)
            raise
        began = self._clock()
        mailbox = Mailbox()
        try:
            if resolved.finish is not None:
                for event in self._whole(resolved, span):
                    yield event
                return
            try:
                self._submit(request, resolved, mailbox, deadline=deadline, span=span)
            except PacelineError as error:
                self._spans.end_request(span, error)
                raise
            while True:
                event = await mailbox.get()
                yield event
                if isinstance(event, Completed):
                    return
        finally:
            self._end(resolved.spec.session_id, mailbox)
            self._admission.leave(self._clock() - began)

    def token_texts(self, model: str) -> Callable[[int], str]:
        """What each token of a model reads like by itself; its id where no tokenizer is known."""
        try:
            codec = self._driver.codecs.get(self._registry.resolve(model).tokenizer_fingerprint)
        except NotFound:  # its last target has just left
            codec = None
        return codec.token_text if codec is not None else lambda token: f"token_id:{token}"

    def stats(self) -> Mapping[str, Any]:
        """``snapshot`` as plain values, with its averages: JSON-ready."""
        snapshot = self.snapshot()
        names = ("messages", "messages_per_token", "sessions_per_message", "router_share")
        return asdict(snapshot) | {name: getattr(snapshot, name) for name in names}

    def snapshot(self) -> RouterStats:
        """What was counted since the start, and how things are just now."""
        return RouterStats(
            under_way=self._admission.under_way,
            waiting=self._admission.waiting,
            rounds=replace(self._dispatcher.counters),
            workers=self._driver.workers(),
        )

    async def _resolve(self, request: Request) -> Resolved:
        if self._closed:
            raise Unavailable("the router is closing")
        model = self._registry.resolve(request.model)
        codec = self._driver.codecs.get(model.tokenizer_fingerprint)
        length = len(request.text or "") + sum(len(content) for _, content in request.messages or ())
        if length > LONG_TEXT:
            prompt = await asyncio.to_thread(prompt_tokens, request, codec)
        else:
            prompt = prompt_tokens(request, codec)
        return resolve(request, prompt, model, codec, config=self.config, registry=self._registry, rng=self._rng)

    def _submit(self, request: Request, resolved: Resolved, mailbox: Mailbox, *, deadline: float, span: Any) -> None:
        if self._closed:
            raise Unavailable("the router is closing")
        spec, now = resolved.spec, self._clock()
        earlier = self._dispatcher.answers.get(spec.session_id)
        if earlier is not None and earlier.request.tenant != request.tenant:
            raise NotFound(f"session {spec.session_id} is not known")
        if earlier is not None:  # the client came back before its lost stream was noticed here
            spec = replace(spec, lease_epoch=max(spec.lease_epoch, earlier.session.leases.epoch))
            why = StaleLease(f"session {spec.session_id} was resumed on another stream")
            self._mail[spec.session_id].fail(why)
            self._dispatcher.cancel(spec.session_id, now, why)
        policy = self._dispatcher.policy
        session = Session(spec, draft_deadline_s=policy.draft_deadline_s, verify_deadline_s=policy.verify_deadline_s)
        self._mail[spec.session_id] = mailbox
        answer = Answer(
            request=request,
            session=session,
            model=resolved.model,
            numerics_class=resolved.numerics_class,
            deadline=deadline,
            span=span,
            drafter=resolved.drafter,
        )
        self._dispatcher.submit(answer, now)
        self._driver.flush()

    def _end(self, session_id: str, mailbox: Mailbox) -> None:
        """The client has its answer, or left: an answer still under way is released on both workers at once."""
        if self._mail.get(session_id) is mailbox:
            del self._mail[session_id]
            self._dispatcher.cancel(session_id, self._clock(), asyncio.CancelledError("the client left"))
            self._driver.flush()

    def _deliver(self, session_id: str, event: Event | PacelineError) -> None:
        mailbox = self._mail.get(session_id)
        if mailbox is None:
            return
        if isinstance(event, PacelineError):
            mailbox.fail(event)
        elif not mailbox.put(event):
            self._dispatcher.cancel(session_id, self._clock(), Overloaded("the client does not read", retry_after_s=1))

    def _whole(self, resolved: Resolved, span: Any) -> tuple[Event, Event]:
        """The events of a resumed answer of which nothing is missing."""
        spec, model = resolved.spec, resolved.model
        assert resolved.finish is not None, "asked only for answers that are whole"
        started = Started(
            request_id=spec.request_id,
            session_id=spec.session_id,
            model=model.model_id,
            fingerprint=model.fingerprint,
            numerics_class=resolved.numerics_class or model.numerics_class,
            prompt_tokens=spec.prompt,
            seed=spec.sampling.seed,
            lease_epoch=spec.lease_epoch,
        )
        completed = Completed(resolved.finish, len(spec.prompt), len(spec.committed))
        self._spans.end_request(span, completed)
        return started, completed
