"""A link comes back from whatever ends its connection."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import pytest
from paceline.router.links import Info, Link, Task
from paceline.runtime import wire
from paceline.speculation.leases import Side
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2 as pb

WITHIN_S = 5.0


async def forever() -> Any:
    await asyncio.Event().wait()


@dataclass
class Call:
    """A Rounds stream whose ends do as they are told."""

    reading: Callable[[], Any] = forever
    writing: Callable[[], Any] = forever

    async def read(self) -> Any:
        return await self.reading()

    async def write(self, message: Any) -> None:
        await self.writing()

    def cancel(self) -> None:
        pass


@dataclass
class Dialect:
    """The first connection has a call that goes wrong, all others have one that says nothing."""

    first: Call
    encode_error: Exception | None = None
    side: Side = Side.DRAFT
    calls: int = 0

    def stub(self, channel: grpc.aio.Channel) -> Any:
        return self

    def Rounds(self) -> Call:  # noqa: N802 - the stub's
        self.calls += 1
        return self.first if self.calls == 1 else Call()

    async def meet(self, stub: Any, timeout_s: float) -> Info:
        return cast(Info, None)  # the listener below asks nothing of it

    def encode(self, router_id: str, tasks: Sequence[Task]) -> Any:
        if self.encode_error is not None:
            raise self.encode_error
        return pb.DraftBatch(router_id=router_id)

    def receive(self, address: str, message: Any, start: float) -> int:
        return 1


@dataclass
class Listener:
    ups: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    downs: int = 0

    def up(self, side: Side, address: str, info: Info, router_id: str) -> None:
        self.ups.put_nowait(router_id)

    def down(self, side: Side, address: str) -> None:
        self.downs += 1

    def spent(self, tasks: Sequence[Task], start: float) -> None:
        pass


def failing(error: BaseException) -> Callable[[], Any]:
    async def fail() -> None:
        raise error

    return fail


def task() -> Task:
    fence = common.Fence(session_id="s", prefix_digest=bytes(8))
    return wire.from_draft_task(pb.DraftTask(fence=fence))


LOSSES = {
    "the reader is cancelled by grpc": Dialect(Call(reading=failing(asyncio.CancelledError()))),
    "a write after the call has ended": Dialect(Call(writing=failing(asyncio.InvalidStateError("finished")))),
    "a write that is cancelled by grpc": Dialect(Call(writing=failing(asyncio.CancelledError()))),
    "an error inside grpc": Dialect(Call(writing=failing(grpc.aio.InternalError("core")))),
    "the stream ends": Dialect(Call(reading=lambda: asyncio.sleep(0, grpc.aio.EOF))),
    "a bug of ours": Dialect(Call(), encode_error=KeyError("bug")),
}


@pytest.mark.parametrize("what", LOSSES)
async def test_a_link_comes_back_after(what: str, caplog: pytest.LogCaptureFixture) -> None:
    dialect, listener = LOSSES[what], Listener()
    link: Link[Any] = Link(
        "127.0.0.1:1",
        dialect,
        listener,
        router_id="r",
        retry_max_s=0.1,
        rng=random.Random(1),
        perf=time.perf_counter,
    )
    link.start()
    try:
        assert await asyncio.wait_for(listener.ups.get(), WITHIN_S) == "r.1"
        link.put([task()])
        assert await asyncio.wait_for(listener.ups.get(), WITHIN_S) == "r.2"
        assert (listener.downs, link.counters.losses) == (1, 1)
        assert ("a bug" in caplog.text) == (what == "a bug of ours")
    finally:
        await link.close()
