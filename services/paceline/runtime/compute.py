"""The thread in which an engine is loaded and runs.

Everything an engine computes belongs in one thread of its process, loading included. libgomp, which runs torch's
parallel regions, counts the threads of every team it ever made; as soon as they outnumber the CPUs, waiting threads
sleep at each barrier instead of spinning, and there are hundreds of barriers in a step. One small torch operation on
the event loop's thread is enough: it doubles the time of every step there will be.

How long they spin matters when several processes compute on the same CPUs: libgomp's own choice is milliseconds, spent
while the thread that is waited for has no CPU. See ``wait_briefly``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# A barrier's wait is short if all threads have a CPU, and then costs nothing. Measured with two engines on two CPUs:
# a step takes twice as long as alone, as it should; with libgomp's own choice, seven times.
_SPINS = "200"


def wait_briefly() -> None:
    """Let waiting threads spin shortly before they sleep. Takes effect only before torch is loaded.

    ``GOMP_SPINCOUNT`` and ``OMP_WAIT_POLICY``, where somebody has set them, stay as they are.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


class ComputeThread:
    """One thread, which does one thing after the other."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, work: Callable[[], T], *, limit_s: float | None = None) -> T:
        """What ``work`` returns or raises. Nobody can stop it: at the limit, and when cancelled, it is left to itself.

        Raises:
            TimeoutError: it took longer than ``limit_s``.
        """
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        done, _ = await asyncio.wait((future,), timeout=limit_s)
        if not done:
            raise TimeoutError(f"not done within {limit_s:g} s")
        return future.result()

    def close(self) -> None:
        """Give the thread back; work under way ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)
