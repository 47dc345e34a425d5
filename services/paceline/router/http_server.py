"""A uvicorn server on the loop it is started on: bounded, quiet, and without a hand on the process's signals."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn
from starlette.types import ASGIApp

from paceline.speculation.errors import Unavailable

MAX_CONNECTIONS = 4096
KEEP_ALIVE_S = 75
_STARTED_POLL_S = 0.01


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # signals belong to the process's owner


class HttpServer:
    """Serves an application on a bound socket, which it closes.

    Args:
        grace_s: answers under way at ``stop`` get this long.
    """

    def __init__(self, app: ASGIApp, bound: socket.socket, *, grace_s: float) -> None:
        self._socket = bound
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(grace_s)),
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; returns when connections are taken."""
        self._task = asyncio.create_task(self._server.serve([self._socket]), name="http server")
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise Unavailable("the HTTP server ended while it started")
            await asyncio.sleep(_STARTED_POLL_S)

    @property
    def serving(self) -> bool:
        """Whether the server runs."""
        return self._task is not None and not self._task.done()

    async def stop(self) -> None:
        """Take no more connections, and end those there are after the grace."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
