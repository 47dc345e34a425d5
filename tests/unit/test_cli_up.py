"""``paceline up`` with scripted services: the ready line, signals, the demo, and that nothing is left running."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from paceline.cli.errors import Failure
from paceline.cli.main import paceline
from paceline.cli.up import run
from paceline.runtime.child import NEVER
from paceline.runtime.cluster import ClusterSpec
from paceline.speculation.errors import Unavailable

from tests.unit.cli_scripted import Scripted, completed, service_commands, started

READY = re.compile(r"paceline ready http=(http://127\.0\.0\.1:\d+) grpc=(127\.0\.0\.1:\d+) logs=(\S+)\n")
DRIVER = """
import asyncio, json, sys
from pathlib import Path
from paceline.cli.up import run
from paceline.runtime.cluster import ClusterSpec
commands = {key: tuple(value) for key, value in json.loads(sys.argv[1]).items()}
spec = ClusterSpec(model="fake", commands=commands, log_dir=Path(sys.argv[2]), settings=tuple(sys.argv[3:]))
sys.exit(asyncio.run(run(spec, demo=False, color=False)))
"""


@contextlib.contextmanager
def up(tmp_path: Path, *settings: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A running ``up``, and the ids of its children."""
    commands = json.dumps(service_commands(tmp_path))
    command = [sys.executable, "-c", DRIVER, commands, str(tmp_path / "logs"), *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert READY.fullmatch(line), line
        children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert len(children) == 3
        yield process, children
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    _expect_gone(children)


def _expect_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while alive := [pid for pid in pids if psutil.pid_exists(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with up(tmp_path) as (process, _):
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    stopped = re.findall(r"(\S+): stopped", err)
    assert stopped == ["router", "draft-0", "target-0"]
    assert "Traceback" not in err


def test_ctrl_c_twice_leaves_nothing(tmp_path: Path) -> None:
    with up(tmp_path, "draft.default_drafter=stubborn") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while "once more kills" not in process.stderr.readline():
            pass  # bounded by the test's timeout
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=5)
    assert process.returncode == 130


def test_kill_minus_nine_leaves_nothing(tmp_path: Path) -> None:
    with up(tmp_path, "draft.default_drafter=stubborn") as (process, _):
        process.kill()
        process.communicate(timeout=5)
    assert process.returncode == -signal.SIGKILL


async def test_a_dead_router_ends_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = ClusterSpec(model="fake", commands=service_commands(tmp_path), restart=NEVER, log_dir=tmp_path)
    running = asyncio.create_task(run(spec, demo=False, color=False))
    parent, router = psutil.Process(), None
    deadline = time.monotonic() + 20
    while router is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
        if READY.search(capsys.readouterr().out):
            router = next(child for child in parent.children() if "router" in child.cmdline())
    router.kill()
    with pytest.raises(Unavailable, match="router: expected it to stay up"):
        await running
    assert parent.children() == []


def _demo_spec(tmp_path: Path, server: Scripted) -> ClusterSpec:
    commands = service_commands(tmp_path)
    commands["router"] += ("--announce", server.address)
    return ClusterSpec(model="fake", commands=commands, log_dir=tmp_path)


async def test_the_demo_answers_two_prompts_and_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Scripted() as server:
        assert await run(_demo_spec(tmp_path, server), demo=True, color=False) == 0
    out, err = capsys.readouterr()
    assert READY.match(out)
    assert out.endswith("One two three four five six\n" * 2)
    assert err.count("τ 2.50") == 2
    assert re.search(r"demo: started, answered and stopped in \d+\.\d s\n$", err)
    assert psutil.Process().children() == []


async def test_a_demo_without_an_answer_fails(tmp_path: Path) -> None:
    script = [started(), completed(0)]
    with Scripted(lambda *_: iter(script)) as server, pytest.raises(Failure, match="expected an answer, got no token"):
        await run(_demo_spec(tmp_path, server), demo=True, color=False)
    assert psutil.Process().children() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--set nonsense", "Error: --set: expected target.KEY=VALUE, draft.… or router.…, got 'nonsense'"),
        ("--model fake --draft-weights int8", "Error: draft_weights: expected a draft model"),
        ("--set target.engine.dtype=int8 --model fake", "Error: target.engine.dtype: expected"),
        ("--targets 0", "Error: targets: expected a whole number, 1 to 64, got 0"),
        ("--config /nowhere.yaml", "Error: --config: expected a readable YAML file, got '/nowhere.yaml'"),
        ("--model no/such/model/at/all", "Error: model: expected"),
        ("--drafts many", "Invalid value for '--drafts'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: str, words: str) -> None:
    result = CliRunner().invoke(paceline, ["up", *arguments.split()])
    assert result.exit_code == 2
    assert words in result.stderr
