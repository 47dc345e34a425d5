"""The router's host process: Ray Serve, two replicas on one port, and a target that lives in this test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from paceline.router.serve_janitor import MARK
from paceline.runtime.command import EXIT_FAILED, EXIT_USAGE
from paceline.runtime.process import Ready, parse_ready
from paceline.v1 import common_pb2 as common
from paceline.v1 import generation_pb2 as generation
from paceline.v1 import generation_pb2_grpc as generation_grpc

from tests.unit.ingress_kit import counting_target


@dataclass
class Host:
    """The process, and what it said."""

    process: asyncio.subprocess.Process
    ready: Ready
    errors: Path

    @property
    def home(self) -> str:
        """Ray's folder, as the replicas know it."""
        for pid in self.ready.pids:
            with contextlib.suppress(OSError):
                for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    if entry.startswith(MARK.encode()):
                        return entry.decode().partition("=")[2]
        raise AssertionError("no replica lives")


def command(*settings: str) -> list[str]:
    overrides = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "paceline.router", *overrides]


@contextlib.asynccontextmanager
async def hosted(errors: Path, *settings: str) -> AsyncIterator[Host]:
    with errors.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command(*settings), stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True
        )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 120)).decode()
        ready = parse_ready(line)
        assert ready is not None, line
        yield Host(process, ready, errors)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def processes_of(home: str) -> list[int]:
    """Live processes that Ray started for the host."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={home}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def leftovers(home: str) -> list[object]:
    """What is left of a host: processes and the folder."""
    return [*processes_of(home), *([home] if Path(home).exists() else [])]


def await_nothing_left(home: str) -> None:
    """The janitor of a host that was killed needs a moment."""
    deadline = time.monotonic() + 10
    while leftovers(home) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leftovers(home) == []


def told(host: Host) -> str:
    """What the host and its replicas logged."""
    return host.errors.read_text()


def listeners() -> set[str]:
    """Addresses listened on by processes of this machine that are not on loopback, as inode numbers."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address = fields[1].rpartition(":")[0]
            loopback = address.endswith("0100007F") or address == "00000000000000000000000001000000"
            if fields[3] == "0A" and not loopback:
                inodes.add(fields[9])
    return inodes


def open_sockets(pid: int) -> set[str]:
    links = (os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink())
    return {link[8:-1] for link in links if link.startswith("socket:[")}


async def generate(address: str, tokens: int) -> AsyncIterator[int]:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = generation_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        request = generation.GenerateRequest(
            tokens=generation.TokenIds(ids=[5, 6, 7]), sampling=common.SamplingOptions(max_tokens=tokens)
        )
        async for response in stub.Generate(request, timeout=60):
            for token in response.tokens.token_ids:
                yield token


async def replica_of(http: str) -> int:
    async with httpx.AsyncClient(base_url=f"http://{http}") as client:
        return int((await client.get("/internal/status")).json()["pid"])


@pytest.mark.e2e
async def test_two_replicas_share_a_port_survive_each_other_and_leave_nothing(tmp_path: Path) -> None:
    async with counting_target() as worker:
        settings = (f"targets=[{worker}]", "replicas=2", "grpc_port=0", "http_port=0")
        async with hosted(tmp_path / "stderr", *settings) as host:
            ready, home = host.ready, host.home
            assert (ready.service, ready.model_id, len(set(ready.pids))) == ("router", "counting", 2)
            assert [token async for token in generate(ready.address, 4)] == [3, 4, 5, 6]
            await the_kernel_spreads_connections(ready)
            await a_killed_replica_breaks_its_streams_and_comes_back(ready)
            nothing_else_may_take_the_port(ready)
            host.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(host.process.wait(), 30) == 0
            assert leftovers(home) == []
        assert "Traceback" not in told(host)


async def the_kernel_spreads_connections(ready: Ready) -> None:
    seen: set[int] = set()
    deadline = time.monotonic() + 20
    while seen != set(ready.pids) and time.monotonic() < deadline:
        seen.add(await replica_of(ready.http))
    assert seen == set(ready.pids)


async def a_killed_replica_breaks_its_streams_and_comes_back(ready: Ready) -> None:
    streams = {asyncio.create_task(drain(ready.address)) for _ in range(20)}
    await asyncio.sleep(0.5)
    os.kill(ready.pids[0], signal.SIGKILL)
    outcomes = await asyncio.gather(*streams)
    assert set(outcomes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, outcomes  # all on one replica: 2^-19
    assert [token async for token in generate(ready.address, 2)] == [3, 4]
    seen: set[int] = set()
    deadline = time.monotonic() + 60
    while not seen - set(ready.pids) and time.monotonic() < deadline:
        seen.add(await replica_of(ready.http))
        await asyncio.sleep(0.05)
    assert seen - set(ready.pids), "no new replica took the dead one's place"


async def drain(address: str) -> grpc.StatusCode:
    try:
        async for _ in generate(address, 100):
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def nothing_else_may_take_the_port(ready: Ready) -> None:
    host, _, port = ready.address.rpartition(":")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind((host, int(port)))


@pytest.mark.e2e
async def test_a_killed_host_leaves_nothing_and_its_ray_is_not_open_to_the_network(tmp_path: Path) -> None:
    async with counting_target() as worker:
        async with hosted(tmp_path / "stderr", f"targets=[{worker}]", "grpc_port=0", "http_port=0") as host:
            home = host.home
            outside = listeners()
            exposed = [pid for pid in processes_of(home) if open_sockets(pid) & outside]
            assert set(exposed) <= set(host.ready.pids), "only Serve's port between replicas, which asks for a token"
            host.process.kill()
            await host.process.wait()
        await asyncio.to_thread(await_nothing_left, home)


@pytest.mark.e2e
async def test_a_host_whose_ray_dies_ends_and_leaves_nothing(tmp_path: Path) -> None:
    async with counting_target() as worker:
        async with hosted(tmp_path / "stderr", f"targets=[{worker}]", "grpc_port=0", "http_port=0") as host:
            home = host.home
            os.kill(daemon_of(host.ready.pid), signal.SIGKILL)
            assert await asyncio.wait_for(host.process.wait(), 30) == EXIT_FAILED
            assert leftovers(home) == []
        assert "Ray has ended by itself" in told(host)


def daemon_of(pid: int) -> int:
    """The host's raylet."""
    [raylet] = [child.pid for child in psutil.Process(pid).children() if child.name() == "raylet"]
    return int(raylet)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("targets=[]",), "targets: expected at least one target verifier"),
        (("replicas=0",), "replicas: expected"),
        (("bogus=1",), "bogus: expected a known field"),
        (("api_keys_file=/nowhere",), "api_keys_file: expected a readable file"),
        (("http_host=0.0.0.0",), "api_keys_file: expected a file of API keys, as http_host is not on loopback"),
    ],
)
async def test_a_wrong_configuration_ends_with_one_line(settings: tuple[str, ...], message: str) -> None:
    code, errors = await run_host("targets=['127.0.0.1:1']", *settings)
    assert (code, len(errors.splitlines())) == (EXIT_USAGE, 1)
    assert errors.startswith(f"paceline router: {message}")


@pytest.mark.parametrize("field", ["grpc_port", "http_port"])
@pytest.mark.parametrize("sharing", [False, True])
async def test_a_taken_port_ends_with_one_line(field: str, sharing: bool) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(sharing))
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        other = "http_port" if field == "grpc_port" else "grpc_port"
        code, errors = await run_host("targets=['127.0.0.1:1']", f"{field}={port}", f"{other}=0")
    assert (code, len(errors.splitlines())) == (EXIT_USAGE, 1)
    assert errors.startswith(f"paceline router: {field}: expected a free port, got '127.0.0.1:{port}'")


async def run_host(*settings: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(*command(*settings), stderr=asyncio.subprocess.PIPE)
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, errors.decode()
