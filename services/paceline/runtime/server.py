"""A grpc.aio server as every worker runs it: bounded, with health, reflection, typed errors and a graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from paceline.runtime.status import RETRY_AFTER_KEY, status_of
from paceline.speculation.errors import Overloaded, PacelineError

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
STOP_GRACE_S = 5.0
MAX_DETAILS_CHARS = 600  # 12 bytes each once quoted, at most; a client drops a call whose trailers exceed 8 to 16 KiB

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_retries", 0),
]


def authority(host: str, port: int) -> str:
    """host:port, with the brackets an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def abort(context: Context, error: Exception) -> None:
    """End a call with the status of an error; a bug is logged with its traceback and told without it."""
    status = status_of(error)
    if not isinstance(error, PacelineError):
        log.error("a bug: %r", error, exc_info=error)
        await context.abort(status.code, "internal error; the service's log has the details")
    trailing: tuple[tuple[str, str], ...] = ()
    if isinstance(error, Overloaded):
        trailing = ((RETRY_AFTER_KEY, str(int(error.retry_after_s * 1000))),)
    await context.abort(status.code, str(error)[:MAX_DETAILS_CHARS], trailing)


@contextlib.asynccontextmanager
async def told(context: Context) -> AsyncIterator[None]:
    """Whatever goes wrong inside is told to the caller as a status; bugs are logged, and told as INTERNAL."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # abort logs what isn't an error of ours
        await abort(context, error)


class WorkerServer:
    """Owns a grpc.aio server from bind to drained stop.

    Args:
        host, port: where to listen; port 0 takes a free one (see ``port`` after ``start``).
        services: full names of the services added by ``add``, for health and reflection.
        add: adds the servicers to the server.
        max_concurrent_rpcs: further calls are refused with RESOURCE_EXHAUSTED.
        reuse_port: share the port with other servers that do; otherwise a taken port is an error.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        services: Sequence[str],
        add: Callable[[grpc.aio.Server], None],
        max_concurrent_rpcs: int = 512,
        reuse_port: bool = False,
    ) -> None:
        self.host, self.port = host, port
        self._names = tuple(services)
        self._server = grpc.aio.server(
            options=[
                *CHANNEL_OPTIONS,
                ("grpc.so_reuseport", int(reuse_port)),
                ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
            ],
            maximum_concurrent_rpcs=max_concurrent_rpcs,
        )
        add(self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self) -> int:
        """Bind and serve; returns the port. Raises OSError if it is taken."""
        address = authority(self.host, self.port)
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}; choose another port") from error
        await self._server.start()
        await self.set_serving(True)
        return self.port

    async def set_serving(self, serving: bool) -> None:
        """Answer health checks, of the server and of each service."""
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, state)

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Stop taking calls, give those under way ``grace_s`` seconds, then end them."""
        await self.set_serving(False)
        await self._server.stop(grace_s)


async def until_stopped(*cleanups: Callable[[], Awaitable[None]]) -> None:
    """Wait for SIGINT or SIGTERM, then run the cleanups in order."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
    for cleanup in cleanups:
        await cleanup()
