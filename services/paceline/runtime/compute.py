"""The thread in which an engine is loaded and runs.

Everything an engine computes belongs in one thread of its process, loading included. libgomp, which runs torch's
parallel regions, counts the threads of every team it ever made; as soon as they outnumber the CPUs, waiting threads
sleep at each barrier instead of spinning, and there are hundreds of barriers in a step. One small torch operation on
the event loop's thread is enough: it doubles the time of every step there will be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


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
