"""One router process: a router core, and its two ingresses on the process's event loop. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from paceline.router.auth import load_keys
from paceline.router.http import http_app
from paceline.router.http_server import HttpServer
from paceline.router.ingress import grpc_ingress
from paceline.router.ingress_backend import Backend, Connecting
from paceline.router.ingress_ports import bracketed, shared_socket
from paceline.runtime.config import RouterConfig
from paceline.speculation.errors import Unavailable

log = logging.getLogger(__name__)

DRAIN_S = 2.0
"""Answers under way get this long when a replica stops."""
LISTEN_ANYWAY_S = 3.0
"""A replica that has reached no target by then listens all the same, to say so. Until then clients are better off with
the others that share its ports: a connection stays where the kernel put it, and so do all attempts on it."""
_HEALTH_POLL_S = 0.25
_SPARE_CALLS = 64  # health checks, model lists, and refusals the router words better than the server would

Connect = Callable[[RouterConfig], Awaitable[Backend]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the host asks of a replica."""

    pid: int
    waiting_for: str  # why it has nothing to serve with yet; empty if it has
    model_id: str


class Replica:
    """A router behind its ingresses, on ports that other replicas share."""

    def __init__(
        self,
        config: RouterConfig,
        grpc_port: int,
        http_port: int,
        connect: Connect,
        *,
        listen_anyway_s: float = LISTEN_ANYWAY_S,
    ) -> None:
        self._config = config
        self._listen_anyway_s = listen_anyway_s
        keys = load_keys(config)
        self._backend = Connecting(lambda: connect(config))
        self._grpc = grpc_ingress(
            self._backend,
            keys,
            bracketed(config.grpc_host),
            grpc_port,
            max_calls=2 * (config.max_sessions + config.max_waiting) + _SPARE_CALLS,
            shared=True,
        )
        self._app = http_app(self._backend, keys)
        self._http_port = http_port
        self._http: HttpServer | None = None
        self._health: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen once there is a target, or after ``listen_anyway_s``. Raises OSError if a port is taken."""
        await self._backend.attempted(self._listen_anyway_s)
        self._http = HttpServer(self._app, shared_socket(self._config.http_host, self._http_port), grace_s=DRAIN_S)
        await self._http.start()
        await self._grpc.start()
        self._health = asyncio.create_task(self._tell_health(), name="health")

    async def _tell_health(self) -> None:
        """gRPC health says whether there is a target to serve with."""
        told: bool | None = None
        while True:
            serving = not self._backend.reason
            if serving is not told:
                await self._grpc.set_serving(serving)
                told = serving
            await asyncio.sleep(_HEALTH_POLL_S)

    def check(self) -> None:
        """Raise if this replica had better be replaced."""
        if self._backend.failure is not None:
            raise RuntimeError("connecting to the workers failed") from self._backend.failure
        if self._http is None or not self._http.serving:
            raise Unavailable("the HTTP server has ended")
        if self._health is None or self._health.done():
            raise Unavailable("the health task has ended")

    def facts(self) -> Facts:
        """What the host asks for."""
        models = self._backend.models()
        return Facts(os.getpid(), self._backend.reason, models[0].model_id if models else "")

    async def stop(self) -> None:
        """Take no more calls, give those under way DRAIN_S seconds, close the router."""
        if self._health is not None:
            self._health.cancel()
            with suppress(asyncio.CancelledError):
                await self._health
        stops = [self._grpc.stop(DRAIN_S)]
        if self._http is not None:
            stops.append(self._http.stop())
        await asyncio.gather(*stops)
        await self._backend.close()
