"""A whole cluster on this machine: draft workers, target verifiers and the router as child processes.

    async with LocalCluster(ClusterSpec(drafts=2)) as cluster:
        print(cluster.http_url, cluster.grpc_address, cluster.processes)

``LocalWorkers`` is the same without the router.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from paceline.runtime.child import NEVER, Observer, ProcessSpec, Restart, State
from paceline.runtime.cluster_spec import ClusterSpec, Configurations, require_free_port
from paceline.runtime.config import RouterConfig
from paceline.runtime.process import Ready
from paceline.runtime.supervisor import Supervisor
from paceline.speculation.errors import NotFound, Unavailable

__all__ = ["ClusterSpec", "LocalCluster", "LocalWorkers", "ProcessInfo"]

_STOP_STAGES = {"router": 0, "draft": 1, "target": 2}


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process of the cluster as it is now."""

    service: str
    address: str
    pid: int | None
    """None while it is down."""
    model_id: str
    state: State
    restarts: int
    replicas: tuple[int, ...] = ()
    """Process ids of a router's replicas, as they were when it got ready."""


class LocalWorkers:
    """Draft workers and target verifiers. ``async with`` starts them and leaves no process behind."""

    def __init__(self, spec: ClusterSpec, *, observe: Observer = lambda *_: None) -> None:
        self.spec = spec
        self.log_dir = spec.log_dir or Path(tempfile.gettempdir())  # a folder in it, once started
        self._temporary = False
        self._observe = observe
        self._changed = asyncio.Event()
        self._configurations = Configurations(spec)
        self._supervisor = Supervisor(self.log_dir, observe=self._on_change, grace_s=spec.stop_grace_s)
        self._any_failed = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start all workers side by side.

        Raises:
            InvalidRequest: the specification is wrong; nothing was started.
            StartFailed: a process did not get ready; the others are stopped.
        """
        self._configurations.check()
        try:
            self._make_log_dir()
            await self._start_services()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop everything in order: router, draft workers, target verifiers."""
        await self._supervisor.stop()
        if self._temporary and not self._any_failed:
            shutil.rmtree(self.log_dir, ignore_errors=True)

    def kill_now(self) -> None:
        """SIGKILL everything at once, without waiting; the logs stay."""
        self._any_failed = True
        self._supervisor.kill_now()

    async def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill one process and return when it is gone.

        A worker comes back on its port unless ``spec.restart`` is NEVER. Raises NotFound if there is no such process.
        """
        if name not in self._supervisor.children:
            raise NotFound(f"process {name}: expected one of {', '.join(self._supervisor.children)}")
        await self._supervisor.children[name].kill(number)

    async def until_ready(self, name: str, timeout_s: float = 60.0) -> None:
        """Wait for a killed worker to be back. Raises Unavailable if it isn't in time."""
        await self._supervisor.children[name].until(State.READY, timeout_s)

    async def failed(self) -> str:
        """Wait until the cluster can't serve any more, and say why: no router, or no target verifier left."""
        while True:
            down = {name for name, info in self.processes.items() if info.state is State.FAILED}
            pools = [{name for name in self.processes if name.startswith(kind)} for kind in ("router", "target")]
            for pool in pools:
                if pool and pool <= down:
                    return f"{', '.join(sorted(pool))}: expected it to stay up; its log is in {self.log_dir}"
            self._changed.clear()
            await self._changed.wait()

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models the workers load."""
        return self._configurations.models()

    @property
    def processes(self) -> dict[str, ProcessInfo]:
        """Processes that were ready once, by name: target-0, draft-0, router."""
        return {
            name: ProcessInfo(
                child.ready.service,
                child.ready.address,
                child.pid,
                child.ready.model_id,
                child.state,
                child.restarts,
                child.ready.pids,
            )
            for name, child in self._supervisor.children.items()
            if child.ready is not None
        }

    @property
    def targets(self) -> tuple[str, ...]:
        """Addresses of the target verifiers."""
        return self._addresses("target")

    @property
    def drafts(self) -> tuple[str, ...]:
        """Addresses of the draft workers."""
        return self._addresses("draft")

    def _addresses(self, kind: str) -> tuple[str, ...]:
        return tuple(info.address for name, info in self.processes.items() if name.startswith(f"{kind}-"))

    async def _start_services(self) -> None:
        names = [f"target-{index}" for index in range(self.spec.targets)]
        names += [f"draft-{index}" for index in range(self.spec.drafts)]
        await self._supervisor.start(*(self._process(name, {}, self.spec.restart) for name in names))

    def _process(self, name: str, values: Mapping[str, Any], restart: Restart) -> ProcessSpec:
        service = name.partition("-")[0]
        path = self.log_dir / f"{name}.yaml"
        path.write_text(yaml.safe_dump(self._configurations.of(service, values).model_dump(mode="json")))
        return ProcessSpec(
            name,
            (*self.spec.commands[service], "--config", str(path)),
            ready_timeout_s=self.spec.start_timeout_s,
            restart=restart,
            stop_stage=_STOP_STAGES[service],
        )

    def _make_log_dir(self) -> None:
        if self.spec.log_dir is None:
            self.log_dir = Path(tempfile.mkdtemp(prefix="paceline-"))
            self._temporary = True
        else:
            self.log_dir.mkdir(parents=True, exist_ok=True)
        self._supervisor.log_dir = self.log_dir

    def _on_change(self, name: str, state: State, detail: str) -> None:
        self._any_failed |= state is State.FAILED
        self._changed.set()
        self._observe(name, state, detail)


class LocalCluster(LocalWorkers):
    """The workers and a router that serves them."""

    http_url = ""
    """Base URL of the HTTP ingress, once started."""
    router: Ready | None = None
    """The router's ready line, once started."""

    @property
    def grpc_address(self) -> str:
        """host:port of the gRPC ingress. Raises Unavailable before the start."""
        if self.router is None:
            raise Unavailable("cluster: expected it to be started; await start() first")
        return _reachable(self.router.address)

    async def _start_services(self) -> None:
        asked = self._configurations.of("router", {})
        assert isinstance(asked, RouterConfig)
        # The router checks too, but only after the workers have loaded their models.
        require_free_port("http_port", asked.http_host, asked.http_port)
        require_free_port("grpc_port", asked.grpc_host, asked.grpc_port)
        await super()._start_services()
        values = {"targets": list(self.targets), "drafts": list(self.drafts)}
        [self.router] = await self._supervisor.start(self._process("router", values, NEVER))
        self.http_url = f"http://{_reachable(self.router.http)}"


def _reachable(address: str) -> str:
    """An address to call, of one that may stand for all interfaces."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in {"0.0.0.0", "[::]"} else address  # noqa: S104  # nothing is bound here
