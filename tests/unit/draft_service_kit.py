"""A draft service on a server of its own, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from paceline.draft.service import SERVICE_NAME, DraftService, add_to
from paceline.draft.spans import RunSpan
from paceline.draft.worker import DraftWorker
from paceline.drafters.interface import Ask, Drafter
from paceline.runtime import wire
from paceline.runtime.server import WorkerServer
from paceline.speculation.messages import DraftResult, DraftTask, Proposal, SessionOpen
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2 as pb
from paceline.v1.draft_pb2_grpc import DraftServiceStub

from tests.unit.draft_kit import INCARNATION, CountingDrafter

PROMPT = (1, 2, 3, 1, 2)


class GatedDrafter(CountingDrafter):
    """Waits in its thread until the gate opens."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.gate = threading.Event()

    def propose(self, asks: Sequence[Ask]) -> list[Proposal]:
        assert self.gate.wait(10)
        return super().propose(asks)


class RecordedSpans:
    def __init__(self) -> None:
        self.runs: list[RunSpan] = []

    def draft_run(self, span: RunSpan) -> None:
        self.runs.append(span)


class Cluster:
    """A served worker and a channel to it."""

    def __init__(self, worker: DraftWorker, service: DraftService, channel: grpc.aio.Channel) -> None:
        self.worker, self.service, self.channel = worker, service, channel
        self.stub: Any = DraftServiceStub(channel)  # type: ignore[no-untyped-call]

    async def open(self, what: SessionOpen) -> common.OpenResponse:
        response: common.OpenResponse = await self.stub.Open(wire.to_open(what), timeout=5)
        return response

    def rounds(self) -> Any:
        return self.stub.Rounds(timeout=20)


@contextlib.asynccontextmanager
async def served(*drafters: Drafter, **options: Any) -> AsyncIterator[Cluster]:
    worker = DraftWorker(drafters, drafters[0].name, incarnation=INCARNATION)
    service = DraftService(worker, pb.DraftDescription(incarnation=INCARNATION), **options)
    server = WorkerServer("127.0.0.1", 0, services=(SERVICE_NAME,), add=add_to(service))
    port = await server.start()
    service.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Cluster(worker, service, channel)
    finally:
        await service.stop()
        await server.stop(0)


def batch(*tasks: DraftTask, router: str = "r") -> pb.DraftBatch:
    return pb.DraftBatch(router_id=router, tasks=[wire.to_draft_task(each) for each in tasks])


async def read(stream: Any) -> list[DraftResult]:
    message = await asyncio.wait_for(stream.read(), 10)
    assert message is not grpc.aio.EOF
    return [wire.from_draft_result(result) for result in message.results]


async def eventually(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


def drafted(result: DraftResult) -> tuple[int, ...]:
    assert isinstance(result.outcome, Proposal)
    return result.outcome.tokens
