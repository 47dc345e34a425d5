"""Parts of the front door: the replica without Ray, its backend before there is a target, ports, the janitor."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from paceline.router import serve_janitor
from paceline.router.ingress_backend import Backend, Connecting
from paceline.router.ingress_fake import ScriptedRouter
from paceline.router.ingress_ports import Reservation, bracketed, shared_socket
from paceline.router.requests import Completed, Request
from paceline.router.serve_home import Home
from paceline.router.serve_replica import Replica
from paceline.runtime.config import RouterConfig
from paceline.speculation.errors import InvalidRequest, Unavailable
from paceline.v1 import generation_pb2 as generation
from paceline.v1 import generation_pb2_grpc as generation_grpc


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait, for some seconds, until it is so."""
    for _ in range(500):
        if await check():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to be")


def connects_at(attempt: int, router: ScriptedRouter, attempts: list[int]) -> Callable[[], Awaitable[Backend]]:
    async def connect() -> Backend:
        attempts.append(len(attempts) + 1)
        if len(attempts) < attempt:
            raise Unavailable("no target verifier reached")
        return router

    return connect


async def test_a_backend_connects_in_the_background() -> None:
    attempts: list[int] = []
    router = ScriptedRouter()
    backend = Connecting(connects_at(2, router, attempts))
    with pytest.raises(Unavailable, match="has not reached a target"):
        await anext(backend.generate(Request(text="x")))
    assert (backend.models(), backend.stats()["connected"]) == ((), False)

    async def connected() -> bool:
        return not backend.reason

    await eventually(connected)
    events = [event async for event in backend.generate(Request(text="x"))]
    assert isinstance(events[-1], Completed)
    assert attempts == [1, 2]
    assert backend.stats()["connected"]
    router.served = ()
    assert backend.reason.endswith("is up")
    await backend.close()
    assert router.shut


async def test_a_bug_while_connecting_is_seen() -> None:
    async def connect() -> Backend:
        raise KeyError("a bug")

    backend = Connecting(connect)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert isinstance(backend.failure, KeyError)
    await backend.close()


async def told(channel: grpc.aio.Channel, status: int) -> bool:
    """Whether the health service says so."""
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return bool(answer.status == status)


async def test_a_replica_serves_both_ways_and_says_when_it_is_ready() -> None:
    router = ScriptedRouter(served=())

    async def connect(config: RouterConfig) -> Backend:
        return router

    ports = [Reservation(name, "127.0.0.1", 0) for name in ("grpc_port", "http_port")]
    replica = Replica(RouterConfig(), ports[0].port, ports[1].port, connect)
    with pytest.raises(Unavailable, match="HTTP server"):
        replica.check()
    await replica.start()
    replica.check()
    async with (
        grpc.aio.insecure_channel(ports[0].address) as channel,
        httpx.AsyncClient(base_url=f"http://{ports[1].address}") as client,
    ):
        await eventually(lambda: told(channel, health_pb2.HealthCheckResponse.NOT_SERVING))
        assert replica.facts().waiting_for == "no target verifier is up"
        assert (await client.get("/readyz")).status_code == 503
        router.served = ScriptedRouter().served
        await eventually(lambda: told(channel, health_pb2.HealthCheckResponse.SERVING))
        assert (replica.facts().waiting_for, replica.facts().model_id) == ("", "fake")
        stub = generation_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        assert [_ async for _ in stub.Generate(generation.GenerateRequest(text="x"))]
        assert (await client.post("/v1/completions", json={"prompt": "x"})).status_code == 200
        assert (await client.get("/internal/status")).json()["pid"] == os.getpid()
    await replica.stop()
    assert router.shut
    for port in ports:
        port.close()


async def test_a_replica_listens_when_it_can_serve_or_has_waited_long_enough() -> None:
    reached = asyncio.Event()

    async def connect(config: RouterConfig) -> Backend:
        await reached.wait()
        return ScriptedRouter()

    async def listens() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", ports[1].port)
        except ConnectionRefusedError:
            return False
        writer.close()
        return True

    ports = [Reservation(name, "127.0.0.1", 0) for name in ("grpc_port", "http_port")]
    early = Replica(RouterConfig(), ports[0].port, ports[1].port, connect, listen_anyway_s=30)
    starting = asyncio.create_task(early.start())
    await asyncio.sleep(0.1)
    assert not await listens()  # the kernel sends nobody here yet
    late = Replica(RouterConfig(), ports[0].port, ports[1].port, connect, listen_anyway_s=0.05)
    await late.start()
    assert await listens()  # to say that there is no target
    await late.stop()
    reached.set()
    await asyncio.wait_for(starting, 5)
    assert await listens()
    await early.stop()
    for port in ports:
        port.close()


def test_a_reserved_port_is_shared_by_those_who_were_told() -> None:
    reservation = Reservation("grpc_port", "127.0.0.1", 0)
    with shared_socket("127.0.0.1", reservation.port) as first, shared_socket("127.0.0.1", reservation.port) as second:
        first.listen()
        second.listen()
        with pytest.raises(
            InvalidRequest, match=f"http_port: expected a free port, got '127.0.0.1:{reservation.port}'"
        ):
            Reservation("http_port", "127.0.0.1", reservation.port)
    with pytest.raises(InvalidRequest, match="expected a free port"):
        Reservation("http_port", "127.0.0.1", reservation.port)
    reservation.close()
    Reservation("http_port", "127.0.0.1", reservation.port).close()


def test_a_reservation_takes_no_connections() -> None:
    reservation = Reservation("grpc_port", "127.0.0.1", 0)
    with shared_socket("127.0.0.1", reservation.port) as listener:
        listener.listen()
        for _ in range(32):
            socket.create_connection(("127.0.0.1", reservation.port), timeout=1).close()
    reservation.close()


def test_an_address_that_is_not_ours_is_told() -> None:
    with pytest.raises(InvalidRequest, match=r"grpc_port: expected a free port, got '192\.0\.2\.77:5'"):
        Reservation("grpc_port", "192.0.2.77", 5)
    with pytest.raises(InvalidRequest, match="grpc_port"):
        Reservation("grpc_port", "no.such.host.invalid", 5)


def test_hosts_before_a_port() -> None:
    assert [bracketed(host) for host in ("::1", "127.0.0.1", "localhost")] == ["[::1]", "127.0.0.1", "localhost"]


def test_the_janitor_ends_what_is_marked_and_removes_the_folder(tmp_path: Path) -> None:
    before = dict(os.environ)
    try:
        with Home() as home:
            assert Path(home.folder).is_dir()
            assert os.environ["RAY_AUTH_MODE"] == "token"
            marked = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=before)
            while not Path(f"/proc/{marked.pid}/environ").read_bytes().count(serve_janitor.MARK.encode()):
                pass
        assert marked.wait(5) == -9
        assert other.poll() is None
        assert not Path(home.folder).exists()
        other.kill()
        other.wait()
    finally:
        os.environ.clear()
        os.environ.update(before)
