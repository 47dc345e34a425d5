"""How long the threads of a worker's parallel regions wait before they sleep."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = "import {module}, os; print(os.environ.get('GOMP_SPINCOUNT'))"


def shown(module: str, **environment: str) -> str:
    """The spin count of a process that imported a module."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", SHOW.format(module=module)]
    done = subprocess.run(command, env={**inherited, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("package", ["target", "draft", "training"])
def test_a_process_that_computes_waits_briefly_and_says_so_before_torch_is_loaded(package: str) -> None:
    assert int(shown(f"paceline.{package}")) < 1000
    loaded = subprocess.run(
        [sys.executable, "-c", f"import paceline.{package}, sys; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "False"


def test_what_somebody_has_set_stays() -> None:
    assert shown("paceline.target", GOMP_SPINCOUNT="77") == "77"
    assert shown("paceline.target", OMP_WAIT_POLICY="active") == "None"
