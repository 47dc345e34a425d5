"""What the two ingresses ask of a router, and the stand-in that answers until a target has been reached."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from paceline.router.requests import Event, Model, Request
from paceline.speculation.errors import PacelineError, Unavailable

log = logging.getLogger(__name__)

_PAUSE_S = 0.25
_PAUSE_MAX_S = 2.0


class Backend(Protocol):
    """A router as its ingresses see it."""

    def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """Started, then Committed per round, then Completed; closing the generator ends the answer.

        Raises:
            PacelineError: the answer cannot begin or go on.
        """
        ...

    def models(self) -> Sequence[Model]:
        """Models served, and by how many."""
        ...

    def token_texts(self, model: str) -> Callable[[int], str]:
        """What each token of a model reads like by itself; its id where no tokenizer is known."""
        ...

    def stats(self) -> Mapping[str, Any]:
        """Counters and gauges, JSON-ready."""
        ...

    async def close(self) -> None:
        """End every answer and let go of the workers."""
        ...


class Connecting:
    """A backend that connects to its router in the background.

    Until then it serves no model and answers Unavailable, so that ingresses can listen (and say so) before the first
    target is up, and a target that comes late needs no restart.
    """

    def __init__(self, connect: Callable[[], Awaitable[Backend]]) -> None:
        self._connect = connect
        self._router: Backend | None = None
        self._reason = "the router has not reached a target yet"
        self._since = time.monotonic()
        self._task = asyncio.get_running_loop().create_task(self._keep_connecting())

    async def _keep_connecting(self) -> None:
        pause = _PAUSE_S
        while self._router is None:
            try:
                self._router = await self._connect()
            except PacelineError as error:
                self._reason = f"the router has not reached a target yet: {error}"
                log.warning("%s; next attempt in %.2g s", self._reason, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSE_MAX_S)

    async def attempted(self, within_s: float) -> None:
        """Wait until there is a router, but no longer than ``within_s``."""
        await asyncio.wait((self._task,), timeout=within_s)

    @property
    def failure(self) -> BaseException | None:
        """The bug that ended the attempts to connect, if one did."""
        if not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    @property
    def reason(self) -> str:
        """Why no target is served yet; empty once one is."""
        if any(model.targets for model in self.models()):
            return ""
        return self._reason if self._router is None else "no target verifier is up"

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """As the router's; Unavailable before there is one."""
        if self._router is None:
            raise Unavailable(self._reason)
        async with aclosing(self._router.generate(request)) as events:
            async for event in events:
                yield event

    def models(self) -> Sequence[Model]:
        """As the router's; none before there is one."""
        return self._router.models() if self._router else ()

    def token_texts(self, model: str) -> Callable[[int], str]:
        """As the router's; asked only about answers it has begun."""
        assert self._router is not None, "no router, no answer"
        return self._router.token_texts(model)

    def stats(self) -> Mapping[str, Any]:
        """As the router's, with how long this ingress has been up."""
        uptime = {"connected": self._router is not None, "uptime_s": round(time.monotonic() - self._since, 3)}
        return uptime | dict(self._router.stats() if self._router else {})

    async def close(self) -> None:
        """Stop connecting, and close the router."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._router is not None:
            await self._router.close()
