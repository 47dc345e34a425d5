"""The ready line is understood again, and nothing else is taken for one."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from paceline.runtime.process import READY_PREFIX, Ready, announce, parse_ready

READY = Ready("router", "127.0.0.1:9000", 7, "abc", "demo", http="127.0.0.1:8000", pids=(8, 9))


def test_a_ready_line_is_understood_again() -> None:
    assert parse_ready(READY.line()) == READY
    assert parse_ready(READY.line() + "\r\n") == READY


def test_announcing_prints_one_ready_line(capsys: pytest.CaptureFixture[str]) -> None:
    announce("draft", "127.0.0.1:1", "i", "m\nodel")
    (line,) = capsys.readouterr().out.splitlines()
    assert parse_ready(line) == Ready("draft", "127.0.0.1:1", os.getpid(), "i", "m\nodel")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "loading the model",
        " " + READY.line(),
        READY_PREFIX,
        READY_PREFIX + "{",
        READY_PREFIX + "[]",
        READY_PREFIX + "null",
        READY_PREFIX + "{}",
        READY_PREFIX + '{"service": "draft"}',
        READY_PREFIX + READY.line().removeprefix(READY_PREFIX).replace("address", "adress"),
        READY.line()[:-5],
    ],
)
def test_any_other_line_is_none(line: str) -> None:
    assert parse_ready(line) is None


CHILD = """
import subprocess, sys, time
code = "import os, sys, time; from paceline.runtime.process import follow_parent; follow_parent(int(sys.argv[1]));"
code += "print(os.getpid(), flush=True); time.sleep(60)"
import os
grandchild = subprocess.Popen([sys.executable, "-c", code, str(os.getpid())], stdout=sys.stdout)
time.sleep(60)
"""


def test_a_process_ends_with_its_parent() -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    child.kill()
    child.wait()
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.stdout.close()
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
