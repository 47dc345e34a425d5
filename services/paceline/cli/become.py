"""Commands that compute with torch, which the command line never loads: its process becomes theirs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def become(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process, whatever it was, by ``python -m module arguments``; signals and exit code are its own."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606
