"""Who is swept up after a router's host: also those whose environment can't be read any more, and nobody else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paceline.router.serve_janitor import MARK, sweep

pytestmark = pytest.mark.e2e

_HOLDS = "import sys, time; file = open(sys.argv[1], sys.argv[2]); print(flush=True); time.sleep(60)"


def holder(path: Path, mode: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process with a file open."""
    command = [sys.executable, "-I", "-S", "-c", _HOLDS, str(path), mode]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    return process


def test_the_marked_and_the_writers_go_and_the_readers_stay(tmp_path: Path) -> None:
    folder, other = tmp_path / "home", tmp_path / "home-of-another"
    for each in (folder, other):
        each.mkdir()
        (each / "log").touch()
    marked = holder(other / "log", "r", {MARK: str(folder)})
    writer = holder(folder / "log", "a", {})
    host = holder(folder / "log", "a", {MARK: str(folder)})
    bystanders = [holder(folder / "log", "r", {}), holder(other / "log", "a", {MARK: str(other)})]
    try:
        sweep(str(folder), host.pid)
        assert [marked.wait(5), writer.wait(5)] == [-9, -9]
        assert [process.poll() for process in (host, *bystanders)] == [None] * 3
    finally:
        for process in (marked, writer, host, *bystanders):
            process.kill()
            process.communicate(timeout=5)
