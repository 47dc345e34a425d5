"""The supervisor against tiny children: ready, never ready, early death, restarts, order of stopping, kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from paceline.runtime.child import NEVER, ProcessSpec, Restart, StartFailed, State
from paceline.runtime.process import READY_PREFIX
from paceline.runtime.supervisor import Supervisor
from paceline.speculation.errors import Unavailable

CHILD = f"""
import json, os, signal, subprocess, sys, time
mode, note = sys.argv[1], sys.argv[2]
port = sys.argv[sys.argv.index("--set") + 1] if "--set" in sys.argv else "port=4242"
def stop(*_):
    with open(note, "a") as file:
        file.write(sys.argv[3] + chr(10))
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else stop)
if mode == "early":
    sys.exit("model: expected one that exists, got 'nonsense'")
if mode == "bad-config":
    print("port: expected a number, got 'x'", file=sys.stderr)
    sys.exit(2)
if mode == "grandchild":
    command = "import time; print('grandchild'); time.sleep(60)"
    grandchild = subprocess.Popen([sys.executable, "-S", "-c", command], start_new_session=True)
    with open(note, "a") as file:
        file.write(str(grandchild.pid) + chr(10))
if mode == "mute":
    print("still loading", file=sys.stderr, flush=True)
if mode != "mute":
    ready = dict(service="draft", address="127.0.0.1:" + port[5:], pid=os.getpid(), incarnation="i", model_id="m")
    print("{READY_PREFIX}" + json.dumps(ready), flush=True)
if mode == "crash":
    sys.exit(3)
time.sleep(60)
"""

Specs = Callable[..., ProcessSpec]


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "note"


@pytest.fixture
def specs(tmp_path: Path, note: Path) -> Specs:
    script = tmp_path / "child.py"
    script.write_text(CHILD)

    def make(
        name: str, mode: str = "good", *, timeout_s: float = 20.0, restart: Restart = NEVER, stage: int = 0
    ) -> ProcessSpec:
        arguments = ("-S", str(script), mode, str(note), name)
        return ProcessSpec(name, arguments, ready_timeout_s=timeout_s, restart=restart, stop_stage=stage)

    return make


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(tmp_path, grace_s=5.0)
    yield supervisor
    await supervisor.stop()
    assert all(child.pid is None for child in supervisor.children.values())


async def test_children_get_ready_side_by_side(supervisor: Supervisor, specs: Specs) -> None:
    first, second = await supervisor.start(specs("a"), specs("b"))
    assert (first.service, first.address) == ("draft", "127.0.0.1:4242")
    assert [child.pid for child in supervisor.children.values()] == [first.pid, second.pid]
    assert os.getsid(first.pid) == first.pid != os.getsid(0)


async def test_a_child_that_never_gets_ready_fails_at_the_deadline_with_its_last_words(
    supervisor: Supervisor, specs: Specs
) -> None:
    with pytest.raises(StartFailed, match=r"mute: .* no ready line within 1 s; .*mute\.log\nstill loading$") as caught:
        await supervisor.start(specs("mute", "mute", timeout_s=1.0))
    assert caught.value.returncode is None
    assert supervisor.children["mute"].pid is None


@pytest.mark.parametrize(("mode", "returncode", "words"), [("early", 1, "nonsense"), ("bad-config", 2, "port: exp")])
async def test_a_child_that_dies_early_tells_why(
    supervisor: Supervisor, specs: Specs, mode: str, returncode: int, words: str
) -> None:
    with pytest.raises(StartFailed, match=f"got exit code {returncode}; .*\n.*{words}") as caught:
        await supervisor.start(specs(mode, mode))
    assert caught.value.returncode == returncode


async def test_one_failure_stops_the_others(supervisor: Supervisor, specs: Specs) -> None:
    await supervisor.start(specs("before"))
    with pytest.raises(StartFailed, match="early"):
        await supervisor.start(specs("beside"), specs("early", "early"))
    assert [child.pid for child in supervisor.children.values()] == [None, None, None]


async def test_a_killed_child_comes_back_on_its_port(supervisor: Supervisor, specs: Specs) -> None:
    [before] = await supervisor.start(specs("draft-0", restart=Restart(backoff_s=0.01)))
    child = supervisor.children["draft-0"]
    await child.kill()
    assert child.state is State.RESTARTING
    await child.until(State.READY, 20)
    assert child.ready is not None
    assert child.ready.address == before.address
    assert child.pid == child.ready.pid != before.pid
    assert child.restarts == 1


async def test_a_killed_child_stays_down_when_it_may_not_restart(supervisor: Supervisor, specs: Specs) -> None:
    await supervisor.start(specs("draft-0"))
    await supervisor.children["draft-0"].kill()
    with pytest.raises(Unavailable, match=r"draft-0: expected it ready within 20 s, got failed"):
        await supervisor.children["draft-0"].until(State.READY, 20)


async def test_restarts_are_bounded(tmp_path: Path, specs: Specs) -> None:
    seen: list[tuple[str, State, str]] = []
    supervisor = Supervisor(tmp_path, observe=lambda *change: seen.append(change))
    await supervisor.start(specs("crash", "crash", restart=Restart(limit=3, backoff_s=0.01)))
    await supervisor.children["crash"].until(State.FAILED, 20)
    assert supervisor.children["crash"].restarts == 3
    assert [state for _, state, _ in seen].count(State.RESTARTING) == 3
    assert seen[-1] == ("crash", State.FAILED, "exit code 3")
    await supervisor.stop()


def test_pauses_double_up_to_a_limit() -> None:
    restart = Restart(backoff_s=0.5, backoff_max_s=3.0)
    assert [restart.pause_s(row) for row in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


async def test_stopping_goes_stage_by_stage(supervisor: Supervisor, specs: Specs, note: Path) -> None:
    await supervisor.start(specs("target-0", stage=2), specs("draft-0", stage=1), specs("router", stage=0))
    await supervisor.stop()
    assert _words(note) == ["router", "draft-0", "target-0"]
    assert {child.state for child in supervisor.children.values()} == {State.STOPPED}


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path, specs: Specs) -> None:
    supervisor = Supervisor(tmp_path, grace_s=0.2)
    [ready] = await supervisor.start(specs("stubborn", "stubborn"))
    began = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - began < 5
    assert not psutil.pid_exists(ready.pid)


async def test_stopping_interrupts_a_restart_under_way(tmp_path: Path, specs: Specs) -> None:
    supervisor = Supervisor(tmp_path)
    await supervisor.start(specs("draft-0", restart=Restart(backoff_s=60, backoff_max_s=60)))
    await supervisor.children["draft-0"].kill()
    began = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("hard", [False, True])
async def test_what_a_child_started_goes_with_it(tmp_path: Path, specs: Specs, note: Path, hard: bool) -> None:
    supervisor = Supervisor(tmp_path, grace_s=0.5)
    await supervisor.start(specs("parent", "grandchild"))
    grandchild = int(_words(note)[0])
    if hard:
        supervisor.kill_now()
    await supervisor.stop()
    _expect_gone([grandchild])


PARENT = """
import asyncio, sys
from pathlib import Path
from paceline.runtime.child import ProcessSpec
from paceline.runtime.supervisor import Supervisor
async def main():
    specs = [ProcessSpec(n, ("-S", sys.argv[1], "stubborn", sys.argv[2], n)) for n in "ab"]
    for ready in await Supervisor(Path(sys.argv[3])).start(*specs):
        print(ready.pid)
    print("done", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_kill_minus_nine_of_the_supervisor_leaves_no_child(tmp_path: Path, specs: Specs, note: Path) -> None:
    script = specs("unused").arguments[1]
    command = [sys.executable, "-c", PARENT, script, str(note), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(line) for line in iter(parent.stdout.readline, "done\n")]
        assert len(pids) == 2
        assert all(psutil.pid_exists(pid) for pid in pids)
        parent.send_signal(signal.SIGKILL)
    _expect_gone(pids)


def _words(path: Path) -> list[str]:
    return path.read_text().split()


def _expect_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while alive := [pid for pid in pids if _running(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)


def _running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_the_event_loop_stays_free_while_a_child_loads(supervisor: Supervisor, specs: Specs) -> None:
    starting = asyncio.create_task(supervisor.start(specs("a")))
    ticks = 0
    while not starting.done():
        await asyncio.sleep(0.005)
        ticks += 1
    await starting
    assert ticks > 2
