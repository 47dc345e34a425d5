"""The step loop: while the engine runs a step in its own thread, rounds for the next one gather."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from paceline.engine.interface import Engine, StepPlan, StepResult
from paceline.runtime.compute import ComputeThread
from paceline.speculation.messages import StepReport, VerifyResult
from paceline.target.feeder import Feeder
from paceline.target.spans import Spans, StepSpan
from paceline.target.verifier import Served, Verifier

log = logging.getLogger(__name__)

MAX_FAILURES = 3  # steps in a row
STEP_LIMIT_S = 120.0

Deliver = Callable[[Mapping[str, Sequence[VerifyResult]], StepReport], None]


class EngineFailed(Exception):
    """The engine cannot be relied on any more; the process should be replaced."""


class StepLoop:
    """Plan, run, complete, deliver; then wait for the next wake-up.

    Args:
        thread: the engine's own; ``close`` closes it.
        deliver: takes a step's answers by router.
        feeder: carries context features.
        clock: monotonic seconds.
        step_limit_s: a step that takes longer is stuck.
    """

    def __init__(
        self,
        verifier: Verifier,
        engine: Engine,
        thread: ComputeThread,
        *,
        deliver: Deliver,
        feeder: Feeder,
        spans: Spans,
        clock: Callable[[], float],
        step_limit_s: float = STEP_LIMIT_S,
    ) -> None:
        self._verifier, self._engine, self._thread = verifier, engine, thread
        self._deliver, self._feeder, self._spans, self._clock = deliver, feeder, spans, clock
        self._step_limit_s = step_limit_s
        self._work = asyncio.Event()
        self._failures = 0

    def wake(self) -> None:
        """A round was taken."""
        self._work.set()

    def close(self) -> None:
        """Give the thread back; a step under way ends by itself."""
        self._thread.close()

    async def run(self) -> None:
        """Work until cancelled. Raises EngineFailed after MAX_FAILURES failed steps in a row, or one that is stuck."""
        while True:
            plan = self._verifier.plan(self._clock())
            if plan is None:
                self._work.clear()
                await self._work.wait()
            else:
                await self._step(plan)

    async def _step(self, plan: StepPlan) -> None:
        start_ns, started = time.time_ns(), self._clock()
        rows = self._verifier.feeds.of_step(plan)
        try:
            result, features = await self._compute(plan, self._feeder.locate(rows))
        except Exception as error:
            log.exception("step %d failed; its %d sessions have to be re-opened", plan.step_id, len(plan.slices))
            self._failures += 1
            # A stuck engine may still write to its KV state, but then nobody plans another step.
            self._tell(plan, self._verifier.fail(plan, self._clock()), start_ns, self._clock() - started, repr(error))
            if isinstance(error, EngineFailed):
                raise
            if self._failures >= MAX_FAILURES:
                raise EngineFailed(f"{self._failures} steps in a row failed, the last one with {error!r}") from error
        else:
            self._failures = 0
            served = self._verifier.complete(plan, result, self._clock())
            for each, data in zip(rows, features, strict=True):
                self._verifier.feeds.computed(each, data)
            self._feeder.wake()
            self._tell(plan, served, start_ns, result.duration_s)

    async def _compute(self, plan: StepPlan, read: Callable[[], list[bytes]]) -> tuple[StepResult, list[bytes]]:
        """The step, and the context features that are awaited of it."""
        work = partial(self._run, plan, read)
        try:
            return await self._thread.run(work, limit_s=self._step_limit_s)
        except TimeoutError as error:
            raise EngineFailed(f"step {plan.step_id}: {error}") from error

    def _run(self, plan: StepPlan, read: Callable[[], list[bytes]]) -> tuple[StepResult, list[bytes]]:
        return self._engine.step(plan), read()

    def _tell(
        self, plan: StepPlan, served: Sequence[Served], start_ns: int, duration_s: float, error: str = ""
    ) -> None:
        report = StepReport(plan.step_id, len(plan.slices), plan.rows, round(duration_s * 1e6))
        by_router: dict[str, list[VerifyResult]] = {}
        for each in served:
            if each.result is not None:
                by_router.setdefault(each.router_id, []).append(each.result)
        self._deliver(by_router, report)
        self._spans.verify_step(
            StepSpan(
                step=report,
                model_id=self._verifier.info.model_id,
                start_ns=start_ns,
                end_ns=time.time_ns(),
                rounds=tuple(each.span for each in served),
                error=error,
            )
        )
