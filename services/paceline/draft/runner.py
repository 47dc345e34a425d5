"""Runs one drafter's batches, one after the other, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial

from paceline.draft.lane import Answer, Batch, Outcome
from paceline.draft.spans import DraftSpan, DraftSpans, RunSpan
from paceline.draft.worker import DraftWorker
from paceline.runtime.compute import ComputeThread

log = logging.getLogger(__name__)

MAX_FAILURES = 3  # runs in a row
RUN_LIMIT_S = 120.0


class DrafterFailed(Exception):
    """A drafter cannot be relied on any more; the process should be replaced."""


class LaneRunner:
    """Plan, run, complete, deliver; then wait for the next wake-up.

    Args:
        drafter: the lane's name.
        thread: the drafter's own; ``close`` closes it.
        deliver: takes answers as soon as there are any.
        clock: monotonic seconds.
        run_limit_s: a run that takes longer is stuck.
    """

    def __init__(
        self,
        worker: DraftWorker,
        drafter: str,
        thread: ComputeThread,
        *,
        deliver: Callable[[Iterable[Answer]], None],
        spans: DraftSpans,
        clock: Callable[[], float],
        run_limit_s: float = RUN_LIMIT_S,
    ) -> None:
        self.drafter = drafter
        self._worker, self._deliver, self._spans, self._clock = worker, deliver, spans, clock
        self._run_limit_s = run_limit_s
        self._thread = thread
        self._work = asyncio.Event()
        self._failures = 0

    def wake(self) -> None:
        """Something was submitted, opened or released."""
        self._work.set()

    def close(self) -> None:
        """Give the thread back; a run under way ends by itself."""
        self._thread.close()

    async def run(self) -> None:
        """Work until cancelled. Raises DrafterFailed after MAX_FAILURES failed runs in a row, or one that is stuck."""
        while True:
            batch = self._worker.plan(self.drafter, self._clock())
            if batch is None:
                self._work.clear()
                await self._until_woken()
                continue
            self._deliver(batch.expired)
            await self._run(batch)

    async def _until_woken(self) -> None:
        """Wait for work, or until a task has waited long enough for its features."""
        until = self._worker.held_until(self.drafter)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if until is None else max(0.0, until - self._clock())):
                await self._work.wait()

    async def _run(self, batch: Batch) -> None:
        start_ns = time.time_ns()
        error: Exception | None = None
        outcome: Outcome | None = None
        try:
            outcome = await self._compute(batch)
            self._failures = 0
        except Exception as caught:
            log.exception("drafter %s failed on %d sessions", self.drafter, len(batch.asks))
            error = caught
            self._failures += 1
        # Drafts are advisory: routers go on with empty ones.
        self._deliver(self._worker.complete(batch, outcome, self._clock()))
        if batch.asks:
            self._spans.draft_run(_span(batch, outcome, start_ns, error))
        if isinstance(error, DrafterFailed):
            raise error
        if error is not None and self._failures >= MAX_FAILURES:
            raise DrafterFailed(f"drafter {self.drafter}: {self._failures} runs in a row failed") from error

    async def _compute(self, batch: Batch) -> Outcome:
        try:
            return await self._thread.run(partial(DraftWorker.run, batch, self._clock), limit_s=self._run_limit_s)
        except TimeoutError as error:
            raise DrafterFailed(f"drafter {self.drafter}: a run was {error}") from error


def _span(batch: Batch, outcome: Outcome | None, start_ns: int, error: Exception | None) -> RunSpan:
    lengths = [len(proposal.tokens) for proposal in outcome.proposals] if outcome else [0] * len(batch.asks)
    return RunSpan(
        drafter=batch.drafter.name,
        model_id=batch.drafter.model_id,
        start_ns=start_ns,
        end_ns=time.time_ns(),
        drafts=tuple(
            DraftSpan(
                trace=waiting.task.trace,
                session_id=waiting.task.fence.session_id,
                round_id=waiting.task.fence.round_id,
                asked=waiting.max_tokens,
                drafted=drafted,
            )
            for waiting, drafted in zip(batch.waiting, lengths, strict=True)
        ),
        error=repr(error) if error else "",
    )
