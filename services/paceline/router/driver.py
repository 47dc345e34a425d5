"""Drives the dispatcher with asyncio and gRPC: does its effects, brings it messages, wakes it at its deadlines."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from paceline.router.counters import WorkerState
from paceline.router.dialects import Codecs, DraftDialect, TargetDialect
from paceline.router.dispatcher import Dispatcher
from paceline.router.effects import Effects, OpenCall, ReleaseCall
from paceline.router.links import Info, Link, Task
from paceline.router.pairing import TargetInfo
from paceline.router.requests import Event
from paceline.runtime.config import RouterConfig
from paceline.speculation.errors import PacelineError
from paceline.speculation.leases import Side
from paceline.speculation.messages import DraftResult, StepReport, VerifyResult

log = logging.getLogger(__name__)

MAX_CALLS = 8192  # Open and Release under way; beyond that releases are left to the workers' time to live
CLOSE_S = 1.0

Deliver = Callable[[str, "Event | PacelineError"], None]


class Driver:
    """One router's connections and clockwork. It belongs to one event loop.

    Args:
        deliver: takes events and ends of answers, by session id; must not call back into the driver.
        clock: monotonic seconds, for deadlines.
        perf: seconds, for measuring the router's own time.
    """

    def __init__(
        self,
        config: RouterConfig,
        dispatcher: Dispatcher,
        *,
        deliver: Deliver,
        router_id: str,
        clock: Callable[[], float],
        perf: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.codecs = Codecs()
        self._config = config
        self._dispatcher = dispatcher
        self._deliver = deliver
        self._clock = clock
        self._perf = perf
        self._calls: set[asyncio.Task[None]] = set()
        self._timer: tuple[float, asyncio.TimerHandle] | None = None
        self._changed = asyncio.Event()  # a worker came or went
        verdicts, drafts = TargetDialect(self._on_verdicts, self.codecs), DraftDialect(self._on_drafts)
        self._links: dict[tuple[Side, str], Link[Any]] = {}
        for side, addresses, dialect in ((Side.TARGET, config.targets, verdicts), (Side.DRAFT, config.drafts, drafts)):
            for address in addresses:
                self._links[side, address] = Link(
                    address,
                    dialect,
                    self,
                    router_id=router_id,
                    retry_max_s=config.reconnect_max_s,
                    rng=random.Random(rng.getrandbits(64)),  # noqa: S311 - jitter
                    perf=perf,
                )

    # Life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin connecting to all workers."""
        for link in self._links.values():
            link.start()

    async def until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something holds that changes with workers coming and going; False if it did not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not reached():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return reached()
        return True

    def up(self, side: Side, address: str, info: Info, router_id: str) -> None:
        """See Listener."""
        if isinstance(info, TargetInfo):
            self._dispatcher.target_up(address, info, router_id, self._clock())
        else:
            self._dispatcher.draft_up(address, info, router_id, self._clock())
        log.info("%s worker %s is up, incarnation %s", side.value, address, info.incarnation)
        self._changed.set()
        self.flush()

    def down(self, side: Side, address: str) -> None:
        """See Listener."""
        if side is Side.TARGET:
            self._dispatcher.target_down(address, self._clock())
        else:
            self._dispatcher.draft_down(address, self._clock())
        self._changed.set()
        self.flush()

    def spent(self, tasks: Sequence[Task], start: float) -> None:
        """See Listener."""
        self._dispatcher.charge([task.fence.session_id for task in tasks], start)

    def unreached(self, side: Side) -> str:
        """Why workers of a kind are away, for an error's text."""
        reasons = [f"{address}: {link.last_error}" for (kind, address), link in self._links.items() if kind is side]
        return "; ".join(reasons) or "none is configured"

    async def close(self) -> None:
        """Let releases under way finish for a moment, then drop all connections."""
        self.flush()
        if self._timer is not None:
            self._timer[1].cancel()
            self._timer = None
        if self._calls:
            await asyncio.wait(self._calls, timeout=CLOSE_S)
        await asyncio.gather(*(link.close() for link in self._links.values()))
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        if self._timer is not None:  # links going down may have set it again
            self._timer[1].cancel()

    # Messages ---------------------------------------------------------------------------------------------------

    def _on_drafts(self, address: str, results: Sequence[DraftResult], start: float) -> None:
        self._dispatcher.on_drafts(address, results, self._clock(), start)
        self._flush_for([result.fence.session_id for result in results])

    def _on_verdicts(self, address: str, results: Sequence[VerifyResult], step: StepReport, start: float) -> None:
        self._dispatcher.on_verdicts(address, results, step, self._clock(), start)
        self._flush_for([result.fence.session_id for result in results])

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatcher.tick(self._clock())
        self.flush()

    def _flush_for(self, session_ids: Sequence[str]) -> None:
        start = self._perf()
        self.flush()
        self._dispatcher.charge(session_ids, start)

    def flush(self) -> None:
        """Do what the dispatcher wants done. Call it after every input."""
        while effects := self._dispatcher.take():  # delivering can end an answer, whose releases come next
            self._do(effects)
        self._arm()

    def _do(self, effects: Effects) -> None:
        for address, drafts in effects.drafts.items():
            self._links[Side.DRAFT, address].put(drafts)
        for address, verifies in effects.verifies.items():
            self._links[Side.TARGET, address].put(verifies)
        for opening in effects.opens:
            self._spawn(self._open(opening))
        for release in effects.releases:
            if len(self._calls) < MAX_CALLS:
                self._spawn(self._release(release))
        for session_id, event in effects.events:
            self._deliver(session_id, event)
        for side, address in effects.resets:
            self._links[side, address].reset()

    def _arm(self) -> None:
        deadline = self._dispatcher.next_deadline()
        if self._timer is not None:
            if self._timer[0] == deadline:
                return
            self._timer[1].cancel()
            self._timer = None
        if deadline is not None:
            wait = max(0.0, deadline - self._clock())
            self._timer = deadline, asyncio.get_running_loop().call_later(wait, self._on_timer)

    # Calls ------------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _open(self, call: OpenCall) -> None:
        try:
            incarnation = await self._links[call.side, call.address].open(call.opening, call.timeout_s)
        except PacelineError as error:
            self._dispatcher.open_failed(call, error, self._clock())
        else:
            self._dispatcher.opened(call, incarnation, self._clock())
        self.flush()

    async def _release(self, call: ReleaseCall) -> None:
        try:
            await self._links[call.side, call.address].release(call.session_id, call.lease_epoch)
        except PacelineError as error:
            log.debug("release of %s on %s: %s", call.session_id, call.address, error)

    # Facts ------------------------------------------------------------------------------------------------------

    def workers(self) -> tuple[WorkerState, ...]:
        """Every worker configured, as the router sees it."""
        return tuple(self._state(side, address, link) for (side, address), link in self._links.items())

    def _state(self, side: Side, address: str, link: Link[Any]) -> WorkerState:
        registry = self._dispatcher.registry
        draft = registry.drafts.get(address) if side is Side.DRAFT else None
        known = draft or (registry.targets.get(address) if side is Side.TARGET else None)
        cohorts = self._dispatcher.cohorts.get(address) if side is Side.TARGET else None
        up = known is not None and known.up
        return WorkerState(
            address=address,
            side=side.value,
            up=up,
            error="" if up else link.last_error,
            sessions=len(known.sessions) if known else 0,
            breaker=draft.breaker.state.value if draft else "",
            cohorts=cohorts.count if cohorts is not None else 0,
            link=link.counters,
        )
