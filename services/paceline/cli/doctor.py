"""``paceline doctor``."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import click
import grpc

from paceline.cli.answer import colored
from paceline.cli.errors import Failure, told
from paceline.engine import models
from paceline.runtime.cluster_spec import port_free

TORCH_TIMEOUT_S = 120.0
GRPC_TIMEOUT_S = 10.0
ROUND_TRIPS = 100
DISK_BYTES_MIN = 2 * 2**30
PORTS = {"HTTP": 8000, "gRPC": 9000}

# Run in a process of its own: the command line never loads torch.
_TORCH = """
import json, torch
print(json.dumps({"version": torch.__version__, "threads": torch.get_num_threads(),
                  "cuda": torch.cuda.device_count(), "cpu": torch.backends.cpu.get_cpu_capability()}))
"""
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[^\]]*\])?>=(?P<least>[\d.]+)")
_PIN = re.compile(r"(?P<name>[\w.-]+)==(?P<version>\S+)")


class Verdict(Enum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


_COLORS = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    verdict: Verdict
    name: str
    found: str
    todo: str = ""


@click.command("doctor")
@click.option("--no-color", is_flag=True, help="No colours, as with NO_COLOR or into a pipe.")
@told
def command(*, no_color: bool) -> None:
    """Check whether this machine is ready; says what to do where it isn't. Fails if any check does."""
    color = colored(not no_color)
    failed = 0
    for run in CHECKS:
        for check in run():
            failed += check.verdict is Verdict.FAIL
            click.echo(line(check, color=color))
    if failed:
        raise Failure(f"{failed} checks failed")


def line(check: Check, *, color: bool) -> str:
    """A check as it is printed."""
    word = f"{check.verdict.value:<4}"
    styled = click.style(word, fg=_COLORS[check.verdict]) if color else word
    return f"{styled}  {check.name}: {check.found}{f'; {check.todo}' if check.todo else ''}"


def check_python() -> Iterator[Check]:
    """Python itself."""
    good = sys.version_info >= (3, 11)
    todo = "" if good else "make a virtual environment with Python 3.11 or newer"
    yield Check(Verdict.OK if good else Verdict.FAIL, "Python", sys.version.split()[0], todo)


def check_packages() -> Iterator[Check]:
    """Everything `paceline[all]` needs, against the least versions; and, in a clone, against its constraints."""
    wanted = dict(_required("paceline"))
    pins = _pins(Path(__file__).parents[3] / "constraints.txt")
    differing = []
    for name, least in sorted(wanted.items()):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(Verdict.FAIL, name, "not installed", f"pip install '{name}>={least}'")
            continue
        if _numbers(found) < _numbers(least):
            yield Check(Verdict.FAIL, name, found, f"pip install '{name}>={least}'")
        elif pins.get(name.lower(), found) != found.partition("+")[0]:
            differing.append(f"{name} {found} (tested with {pins[name.lower()]})")
    if differing:
        yield Check(Verdict.WARN, "versions", ", ".join(differing), "pip install -c constraints.txt to get those")
    yield Check(Verdict.OK, "packages", f"{len(wanted)} looked up")


def check_torch() -> Iterator[Check]:
    """Where and how fast models can run."""
    try:
        done = subprocess.run(  # noqa: S603  # a fixed command
            [sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=True
        )
    except (subprocess.SubprocessError, OSError) as error:
        words = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        yield Check(Verdict.FAIL, "torch", " ".join(words), "pip install 'paceline[all]'")
        return
    torch: dict[str, Any] = json.loads(done.stdout)
    where = f"{torch['cuda']} CUDA devices" if torch["cuda"] else f"CPU ({torch['cpu']})"
    yield Check(Verdict.OK, "torch", f"{torch['version']}, {where}, {torch['threads']} threads")
    if not torch["cuda"]:
        yield check_bfloat16(_cpu_flags())


def check_bfloat16(flags: set[str]) -> Check:
    """Whether the CPU multiplies in bfloat16 itself."""
    native = sorted(flags & {"amx_bf16", "avx512_bf16", "bf16"})
    if native:
        return Check(Verdict.OK, "bfloat16", f"in hardware ({', '.join(native)})")
    return Check(Verdict.WARN, "bfloat16", "not in this CPU's hardware", "paceline up --dtype float32 may be faster")


def check_ports() -> Iterator[Check]:
    """The default ports."""
    for name, port in PORTS.items():
        if port_free("127.0.0.1", port):
            yield Check(Verdict.OK, f"{name} port {port}", "free")
        else:
            todo = f"if that is no cluster of yours, paceline up --{name.lower()}-port 0"
            yield Check(Verdict.WARN, f"{name} port {port}", "taken", todo)


def check_model() -> Iterator[Check]:
    """The demo model, and room for models."""
    root = models.cache_root()
    present = (root / "models" / models.DEMO).is_dir()
    yield Check(
        Verdict.OK if present else Verdict.WARN,
        "demo model",
        "present" if present else "not fetched yet",
        "" if present else "paceline models fetch demo",
    )
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    good = free >= DISK_BYTES_MIN
    todo = "" if good else f"free {DISK_BYTES_MIN / 2**30:.0f} GiB, or point PACELINE_HOME elsewhere"
    yield Check(Verdict.OK if good else Verdict.WARN, "disk", f"{free / 2**30:.1f} GiB free for {root}", todo)


def check_grpc() -> Iterator[Check]:
    """What a round pays for the network here, at least."""
    try:
        seconds = asyncio.run(asyncio.wait_for(round_trip_s(), GRPC_TIMEOUT_S))
    except (OSError, RuntimeError, TimeoutError, grpc.aio.AioRpcError) as error:
        yield Check(Verdict.FAIL, "gRPC over loopback", repr(error), "look for a firewall or proxy variables")
        return
    slow = seconds > 0.005
    todo = "other work on this machine slows rounds down" if slow else ""
    verdict = Verdict.WARN if slow else Verdict.OK
    yield Check(verdict, "gRPC over loopback", f"{seconds * 1000:.2f} ms per message and answer on a stream", todo)


async def round_trip_s() -> float:
    """Median time of a message and its answer on a stream, as rounds use it."""

    async def echo(request_iterator: Any, context: Any) -> Any:
        async for message in request_iterator:
            yield message

    server = grpc.aio.server()
    handler: Any = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("doctor", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    times = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_stream("/doctor/Echo")()
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            await call.write(b"round")
            await call.read()
            times.append(time.perf_counter() - began)
        call.cancel()
    await server.stop(None)
    return statistics.median(times)


CheckRun = Callable[[], Iterator[Check]]
CHECKS: tuple[CheckRun, ...] = (
    check_python,
    check_packages,
    check_torch,
    check_model,
    check_ports,
    check_grpc,
)


def _required(distribution: str) -> Iterator[tuple[str, str]]:
    for text in importlib.metadata.requires(distribution) or ():
        extra = re.search(r"extra == ['\"](\w+)['\"]", text)
        found = _REQUIREMENT.match(text)
        if found and found["name"] != distribution and (extra is None or extra[1] != "dev"):
            yield found["name"], found["least"]


def _pins(path: Path) -> dict[str, str]:
    """name -> version of a constraints file; none outside a clone."""
    if not path.is_file():
        return {}
    return {found["name"].lower(): found["version"] for found in _PIN.finditer(path.read_text(encoding="utf-8"))}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _cpu_flags() -> set[str]:
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return set()
    return set(words)
