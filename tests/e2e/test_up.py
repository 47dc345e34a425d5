"""``paceline up``: two clusters on one machine, what other commands say to them, and what is left in the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from paceline_client import AsyncClient
from paceline_client import PacelineError as ClientError

from tests.e2e.programs import Up, paceline, up

pytestmark = pytest.mark.e2e

PROMPT = "Why do riders ride in a line?"
OPTIONS = ("--temperature", "0.8", "--seed", "5", "--max-tokens", "24")
STOP_S = 45.0
NOTHING_LEFT_S = 15.0
NOBODY = "127.0.0.1:9"
Tell = Callable[[str], None]


async def test_two_clusters_side_by_side_leave_nothing(tmp_path: Path, tell: Tell) -> None:
    one_up = up(tmp_path / "one", "--model", "fake:eos=0", "--drafts", "2", "--routers", "2")
    models = ("--model", "fake:seed=1,eos=0", "--draft-model", "fake:seed=1,quality=0.9")
    other_up = up(tmp_path / "other", *models, "--log-dir", str(tmp_path / "logs"))  # kill -9 leaves it
    async with one_up as one, other_up as other:
        assert len({one.grpc, other.grpc, one.http, other.http}) == 4
        first, second = await asyncio.gather(generates_as_the_sdk_does(one), generates_as_the_sdk_does(other))
        assert first != second, "two models wrote the same text"
        await tells_its_status(one, other)
        await a_taken_port_is_refused(one)
        seconds = await stops_at(one, signal.SIGINT, 0)
        tell(f"paceline up: SIGINT to nothing left in {seconds:.1f} s")
        assert not one.logs.exists(), "the logs of a run without failures"
        assert await generates_as_the_sdk_does(other) == second
        seconds = await stops_at(other, signal.SIGKILL, -signal.SIGKILL)
        tell(f"paceline up: kill -9 to nothing left in {seconds:.1f} s")
        await nobody_answers(one)


async def generates_as_the_sdk_does(cluster: Up) -> str:
    """The text of `paceline generate`, plain and as JSON, is the SDK's."""
    async with AsyncClient(cluster.grpc) as client:
        answer = await client.generate(
            messages=[{"role": "user", "content": PROMPT}], temperature=0.8, seed=5, max_tokens=24
        )
    assert len(answer.token_ids) == 24
    plain, whole = await asyncio.gather(
        paceline("generate", "--address", cluster.grpc, *OPTIONS, PROMPT),
        paceline("generate", *OPTIONS, "--json", "-", stdin=PROMPT, PACELINE_ADDRESS=cluster.grpc),
    )
    assert (plain.code, plain.out) == (0, answer.text + "\n" * (not answer.text.endswith("\n"))), plain
    assert "24 tokens in" in plain.err
    told = json.loads(whole.out)
    assert (whole.code, told["text"], told["finish_reason"]) == (0, answer.text, "length"), whole
    assert tuple(token["id"] for token in told["tokens"]) == answer.token_ids
    return answer.text


async def tells_its_status(one: Up, other: Up) -> None:
    """`paceline status` of each, for people and as JSON; of nobody it is an error."""
    told, of_other, of_nobody = await asyncio.gather(
        paceline("status", "--address", one.grpc, "--http", one.http, "--json"),
        paceline("status", "--address", other.grpc, "--http", other.http),
        paceline("status", "--address", NOBODY, "--http", f"http://{NOBODY}"),
    )
    status = json.loads(told.out)
    (model,) = status["models"]
    assert (told.code, status["problems"], model["targets"], model["drafts"]) == (0, [], 1, 2), told
    assert len(status["router"]["stats"]["workers"]) == 3
    assert status["health"] == {"status": "ok"}
    assert (of_other.code, "1 target verifiers, 1 draft workers up" in of_other.out) == (0, True), of_other
    assert (of_nobody.code, "nothing answers" in of_nobody.err) == (1, True), of_nobody


async def a_taken_port_is_refused(one: Up) -> None:
    port = one.http.rpartition(":")[2]
    began = time.monotonic()
    ran = await paceline("up", "--model", "fake", "--http-port", port, "--grpc-port", "0")
    assert (ran.code, "http_port: expected a free port" in ran.err) == (2, True), ran
    assert time.monotonic() - began < STOP_S


async def stops_at(cluster: Up, number: signal.Signals, code: int) -> float:
    """Signal the program; returns the seconds until nothing of it is left."""
    before = cluster.started()
    assert len(before) > 4, f"{before}: expected workers, the router's host, Ray and replicas"
    began = time.monotonic()
    cluster.send(number)
    assert await cluster.ended(STOP_S) == code, cluster.told()
    if number is not signal.SIGKILL:
        assert "stopped" in cluster.told()
        assert not left(cluster, before), f"{left(cluster, before)}\n{cluster.told()}"
    while found := left(cluster, before):
        assert time.monotonic() - began < NOTHING_LEFT_S, f"{found}\n{cluster.told()}"
        await asyncio.sleep(0.1)
    return time.monotonic() - began


def left(cluster: Up, before: set[psutil.Process]) -> list[str]:
    """Processes of the cluster that still run: those known before, those marked, those that name its folder."""
    found = {process for process in before if process.is_running()} | cluster.started()
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(str(cluster.logs) in part for part in process.info["cmdline"] or ()):
            found.add(process)
    return [str(process) for process in found if lives(process)]


def lives(process: psutil.Process) -> bool:
    """Not gone, and not merely waiting for its parent to look."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def nobody_answers(cluster: Up) -> None:
    ran = await paceline("generate", "--address", cluster.grpc, PROMPT)
    assert (ran.code, "is a cluster running there?" in ran.err) == (1, True), ran
    async with AsyncClient(cluster.grpc) as client:
        with pytest.raises(ClientError):
            await client.models(timeout=2)
