"""Carries context features to draft workers: one stream each, kept while sessions' features go there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grpc

from paceline.engine.interface import Engine
from paceline.runtime.compute import ComputeThread
from paceline.runtime.server import CHANNEL_OPTIONS
from paceline.runtime.wire_features import from_want, to_chunk
from paceline.target.feeds import Feeds, Rows
from paceline.v1.draft_pb2_grpc import DraftServiceStub

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 2.0
STEADY_S = 5.0  # a stream that lasted this long was a good one: the next pause starts small again
IDLE_S = 60.0
WRITE_TIMEOUT_S = 10.0
READ_LIMIT_S = 120.0  # it waits for the step under way
_LOST = (asyncio.InvalidStateError, grpc.aio.BaseError, OSError, TimeoutError)

Connect = Callable[[str], grpc.aio.Channel]


def insecure(address: str) -> grpc.aio.Channel:
    """A channel inside the cluster."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


class Feeder:
    """A runner of a TargetService.

    Args:
        feeds: the verifier's.
        thread: the engine's, which reads features between steps.
        connect: makes a channel to a draft worker's address.
    """

    def __init__(self, feeds: Feeds, engine: Engine, thread: ComputeThread, *, connect: Connect = insecure) -> None:
        self._feeds, self._engine, self._thread, self._connect = feeds, engine, thread, connect
        self._work = asyncio.Event()
        self._wakes: dict[str, asyncio.Event] = {}

    def locate(self, rows: Sequence[Rows]) -> Callable[[], list[bytes]]:
        """What reads them in the engine's thread, to be handed to it before anything else happens."""
        locate = self._engine.locate_features
        found = [locate(each.session_id, each.feed.projector, each.start, each.end) for each in rows]
        return partial(self._engine.read_features, found)

    def wake(self) -> None:
        """Rounds were taken, or a step is over."""
        self._work.set()
        for wake in self._wakes.values():
            wake.set()

    def close(self) -> None:
        """Nothing: streams end with ``run``."""

    async def run(self) -> None:
        """Work until cancelled."""
        streams: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                streams = {address: task for address, task in streams.items() if not task.done()}
                for address in self._feeds.addresses - streams.keys():
                    streams[address] = asyncio.create_task(self._keep(address))
        finally:
            for task in streams.values():
                task.cancel()
            await asyncio.gather(*streams.values(), return_exceptions=True)

    async def _keep(self, address: str) -> None:
        """One draft worker, for as long as features go there."""
        pause, clock = FIRST_PAUSE_S, asyncio.get_running_loop().time
        wake = self._wakes[address] = asyncio.Event()
        try:
            while address in self._feeds.addresses:
                began = clock()
                try:
                    async with self._connect(address) as channel:
                        await self._serve(address, channel, wake)
                except _LOST as error:
                    why = error.details() if isinstance(error, grpc.aio.AioRpcError) else repr(error)
                    log.info("features to %s: %s", address, why)
                except Exception:  # whatever it was, drafts can do without and tokens must not
                    log.exception("features to %s: a bug", address)
                pause = FIRST_PAUSE_S if clock() - began >= STEADY_S else min(MAX_PAUSE_S, 2 * pause)
                await asyncio.sleep(pause)
        finally:
            del self._wakes[address]

    async def _serve(self, address: str, channel: grpc.aio.Channel, wake: asyncio.Event) -> None:
        """One stream, until it is lost or nobody has needed it for a while. Raises whatever lost it."""
        call = DraftServiceStub(channel).Features()  # type: ignore[no-untyped-call]
        reader = asyncio.create_task(self._read(address, call, wake))
        self._feeds.connected(address)
        try:
            while not reader.done():
                await self._send(address, call)
                try:
                    async with asyncio.timeout(IDLE_S):
                        await wake.wait()
                except TimeoutError:
                    if address not in self._feeds.addresses:
                        return
                wake.clear()
            reader.result()
        finally:
            self._feeds.lost(address)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            call.cancel()

    async def _send(self, address: str, call: Any) -> None:
        """Write all that may go now."""
        while True:
            for chunk in self._feeds.outgoing(address):
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await call.write(to_chunk(chunk))
            rows = self._feeds.due(address)
            if rows is None:
                return
            data: bytes | None = None
            try:
                [data] = await self._thread.run(self.locate([rows]), limit_s=READ_LIMIT_S)
            finally:
                self._feeds.gathered(rows, data)

    async def _read(self, address: str, call: Any, wake: asyncio.Event) -> None:
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                self._feeds.credited(address, message.bytes, [from_want(want) for want in message.wants])
                wake.set()
        finally:
            wake.set()
