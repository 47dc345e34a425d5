"""The command itself: fast help, lazy commands, models, doctor, and bugs told in one line."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from paceline.cli import doctor
from paceline.cli.doctor import Check, Verdict
from paceline.cli.main import COMMANDS, paceline


def test_help_is_fast_and_imports_no_command() -> None:
    code = (
        "import sys\nfrom paceline.cli.main import paceline\n"
        "try: paceline.main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'grpc', 'rich', 'pydantic', 'torch', 'httpx', 'psutil'} & set(sys.modules)))"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert time.monotonic() - began < 2  # 0.1 s on an idle machine
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    """In a process of its own, which some commands replace."""
    command = [sys.executable, "-m", "paceline.cli.main", name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_no_command_loads_torch() -> None:
    code = (
        f"import sys\nfor name in {list(COMMANDS)}: __import__('paceline.cli.' + name)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_an_unknown_command_is_bad_input() -> None:
    result = CliRunner().invoke(paceline, ["fly"])
    assert result.exit_code == 2
    assert "No such command 'fly'" in result.stderr


def test_a_bug_is_one_line() -> None:
    code = (
        "import sys, click\nfrom paceline.cli import main\n"
        "sys.modules['paceline.cli.up'] = type('M', (), {'command': click.Command('up', callback=lambda: 1 / 0)})\n"
        "sys.argv = ['paceline', 'up']\nmain.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: a bug of paceline: ZeroDivisionError: division by zero; PACELINE_TRACEBACK=1")
    assert len(done.stderr.splitlines()) == 1


def test_models_lists_what_is_here(tmp_path: Path) -> None:
    runner = CliRunner(env={"PACELINE_HOME": str(tmp_path)})
    assert "get one with `paceline models fetch demo`" in runner.invoke(paceline, ["models", "list"]).stderr
    folder = tmp_path / "models" / "demo"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(2**20))
    assert runner.invoke(paceline, ["models", "list"]).stdout == f"demo\t1 MiB\t{folder}\n"
    fetched = runner.invoke(paceline, ["models", "fetch", "demo"])
    assert (fetched.exit_code, fetched.stdout) == (0, f"{folder}\n")


def test_a_model_nobody_can_fetch_is_bad_input(tmp_path: Path) -> None:
    result = CliRunner(env={"PACELINE_HOME": str(tmp_path)}).invoke(paceline, ["models", "fetch", "no such model"])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: model: expected `demo`, a model folder")


@pytest.mark.parametrize(
    "check", [doctor.check_python, doctor.check_packages, doctor.check_model, doctor.check_ports, doctor.check_grpc]
)
def test_checks_pass_here_and_say_what_to_do_otherwise(check: doctor.CheckRun) -> None:
    found = list(check())
    assert found
    assert all(each.todo for each in found if each.verdict is not Verdict.OK)
    assert not any(each.verdict is Verdict.FAIL for each in found), found


def test_bfloat16_without_hardware_is_a_warning() -> None:
    assert doctor.check_bfloat16({"amx_bf16"}).verdict is Verdict.OK
    assert doctor.check_bfloat16({"sse2"}).verdict is Verdict.WARN


async def test_a_round_trip_is_measured() -> None:
    assert 0 < await asyncio.wait_for(doctor.round_trip_s(), 20) < 1


def test_a_check_is_one_line() -> None:
    check = Check(Verdict.WARN, "disk", "1.0 GiB free", "free 2 GiB")
    assert doctor.line(check, color=False) == "warn  disk: 1.0 GiB free; free 2 GiB"
    assert "\x1b[33mwarn" in doctor.line(check, color=True)
