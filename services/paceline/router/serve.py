"""The router on Ray Serve.

Serve places the replicas, checks their health and restarts them. Its proxies are not started: each replica serves its
clients itself (``serve_replica``), at plain grpc.aio cost, with real status codes, on the host and port it was told.
Import this module only when the environment of ``serve_home.Home`` is set: Ray reads it when it is imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve

from paceline.router.ingress_ports import Reservation
from paceline.router.router import Router
from paceline.router.serve_home import Home
from paceline.router.serve_replica import DRAIN_S, Facts, Replica
from paceline.runtime.config import RouterConfig
from paceline.speculation.errors import Unavailable
from paceline.telemetry.provider import setup
from paceline.telemetry.router_spans import RouterSpans

log = logging.getLogger(__name__)

APPLICATION = "router"
READY_DEADLINE_S = 120.0
"""From replicas that listen to replicas that have a target."""
_CALL_TIMEOUT_S = 10.0
_POLL_S = 0.1
_OBJECT_STORE_BYTES = 80 << 20  # Ray's minimum is 75 MiB; nothing of ours goes through it
_DAEMONS = ("gcs_server", "raylet")
_LOG_FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"


class ServedRouter:
    """The deployment's class: a Replica with the methods Serve looks for."""

    async def __init__(self, config: dict[str, Any], grpc_port: int, http_port: int, log_path: str) -> None:  # type: ignore[misc]
        _log_to(log_path)
        checked = RouterConfig.model_validate(config)
        self._tracing = setup(checked.telemetry, "router", uuid.uuid4().hex)
        spans = RouterSpans(self._tracing)
        self._replica = Replica(checked, grpc_port, http_port, lambda config: Router.connect(config, spans=spans))
        await self._replica.start()

    async def check_health(self) -> None:
        """Called by Serve every second; a replica that raises is replaced."""
        self._replica.check()

    async def facts(self) -> Facts:
        """Called by the host."""
        return self._replica.facts()

    async def __del__(self) -> None:
        """Called, and awaited, by Serve when it stops the replica."""
        await self._replica.stop()
        await asyncio.to_thread(self._tracing.shutdown)


class RayRouter:
    """Ray, Serve and the replicas, from ``start`` to ``stop``."""

    def __init__(self, config: RouterConfig, grpc_port: Reservation, http_port: Reservation, home: Home) -> None:
        self._config, self._grpc_port, self._http_port, self._home = config, grpc_port, http_port, home
        self._daemons: list[int] = []

    def start(self) -> list[Facts]:
        """Start; returns when every replica has a target to serve with.

        Raises:
            Unavailable: they did not get that far.
        """
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=1,  # replicas are placed by count, not by share
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=self._home.folder,
        )
        signal.signal(signal.SIGTERM, handler)  # ray.init put one of its own there, which aborts the process
        self._daemons = [pid for pid in _children(os.getpid()) if _command(pid) in _DAEMONS]
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")
        deployment = serve.deployment(
            name=APPLICATION,
            num_replicas=self._config.replicas,
            max_ongoing_requests=100_000,
            max_queued_requests=-1,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=2 * DRAIN_S,
            health_check_period_s=1,
            max_constructor_retry_count=3,
            ray_actor_options={"num_cpus": 0},
        )(ServedRouter)
        application = deployment.bind(
            self._config.model_dump(), self._grpc_port.port, self._http_port.port, f"/proc/{os.getpid()}/fd/2"
        )
        try:
            handle = serve.run(application, name=APPLICATION, route_prefix=None)
        except RuntimeError as error:
            raise Unavailable(f"the router's replicas did not start: {error}") from error
        return self._await_targets(lambda: handle.facts.remote().result(timeout_s=_CALL_TIMEOUT_S))

    def _await_targets(self, ask: Callable[[], Facts]) -> list[Facts]:
        """Ask whichever replica Serve picks, until each has answered that it has a target."""
        deadline = time.monotonic() + READY_DEADLINE_S
        ready: dict[int, Facts] = {}
        while len(ready) < self._config.replicas:
            facts = ask()
            if not facts.waiting_for:
                ready[facts.pid] = facts
            elif time.monotonic() > deadline:
                raise Unavailable(f"{facts.waiting_for} (waited {READY_DEADLINE_S:g} s; is one running?)")
            else:
                time.sleep(_POLL_S)
        return list(ready.values())

    @property
    def alive(self) -> bool:
        """Whether Ray's own daemons are; without them no replica lives for long."""
        return all(_command(pid) in _DAEMONS for pid in self._daemons)

    def stop(self) -> None:
        """Drain the replicas, end Ray. One that is dying is left to the janitor: asked to shut down, it hangs."""
        if not self.alive:
            return
        with contextlib.redirect_stderr(io.StringIO()):  # Ray reports that the controller it ends has ended
            if ray.is_initialized():
                with contextlib.suppress(Exception):
                    serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def _children(pid: int) -> list[int]:
    """Child processes; none where there is no /proc."""
    stats = (entry.parent.name for entry in Path("/proc").glob("[0-9]*/stat"))
    return [int(name) for name in stats if _stat(int(name))[1:2] == [str(pid)]]


def _command(pid: int) -> str:
    """The name of a live process; empty for one that has ended."""
    if _stat(pid)[:1] in ([], ["Z"]):
        return ""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    return ""


def _stat(pid: int) -> list[str]:
    """State, parent and so on; empty for a process that is gone."""
    with contextlib.suppress(OSError):
        # The name stands before, in parentheses, and may hold anything.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return []


def _log_to(path: str) -> None:
    """Have a replica's log lines where the host's are; Ray would hide them in its session folder."""
    stream: logging.Handler
    try:
        stream = logging.FileHandler(path)
    except OSError:  # a socket, or not Linux
        stream = logging.StreamHandler()
    stream.setFormatter(logging.Formatter(_LOG_FORMAT))
    logger = logging.getLogger("paceline")
    logger.addHandler(stream)
    logger.setLevel(logging.INFO)
    logger.propagate = False
