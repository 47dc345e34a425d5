"""A target service on a server of its own, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from paceline.engine.interface import StepPlan, StepResult
from paceline.runtime import wire
from paceline.runtime.server import WorkerServer
from paceline.speculation.messages import (
    SessionOpen,
    StepReport,
    Verdict,
    VerifyResult,
    VerifyTask,
)
from paceline.target.service import FILE_CHUNK_BYTES, SERVICE_NAME, TargetService, add_to
from paceline.target.spans import StepSpan
from paceline.target.verifier import Verifier
from paceline.v1 import target_pb2 as pb
from paceline.v1.target_pb2_grpc import TargetServiceStub

from tests.unit.target_kit import ScriptedEngine, make_verifier

FILES = {"tokenizer.json": b"{}" * FILE_CHUNK_BYTES, "empty.txt": b""}


@dataclass
class GatedEngine(ScriptedEngine):
    """Waits in its thread until the gate opens."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: int = 0

    def step(self, plan: StepPlan) -> StepResult:
        self.entered += 1
        assert self.gate.wait(10)
        return super().step(plan)


class RecordedSpans:
    def __init__(self) -> None:
        self.steps: list[StepSpan] = []

    def verify_step(self, span: StepSpan) -> None:
        self.steps.append(span)


@dataclass
class Served:
    """A served verifier and a channel to it."""

    verifier: Verifier
    engine: ScriptedEngine
    service: TargetService
    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.stub: Any = TargetServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def open(self, *sources: SessionOpen) -> None:
        for source in sources:
            opened = await self.stub.Open(wire.to_open(source), timeout=5)
            assert (opened.incarnation, opened.model_id) == ("inc-1", "scripted")

    def rounds(self) -> Any:
        return self.stub.Rounds(timeout=20)


@contextlib.asynccontextmanager
async def served(engine: ScriptedEngine | None = None, *, limits: Any = None, **options: Any) -> AsyncIterator[Served]:
    verifier, engine = make_verifier(engine, **(limits or {}))
    service = TargetService(verifier, engine, pb.TargetDescription(incarnation="inc-1"), FILES, **options)
    server = WorkerServer("127.0.0.1", 0, services=(SERVICE_NAME,), add=add_to(service))
    port = await server.start()
    service.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Served(verifier, engine, service, channel)
    finally:
        await service.stop()
        await server.stop(0)


def batch(*tasks: VerifyTask, router: str = "r1") -> pb.VerifyBatch:
    return pb.VerifyBatch(router_id=router, tasks=[wire.to_verify_task(each) for each in tasks])


async def read(stream: Any) -> tuple[list[VerifyResult], StepReport]:
    message = await asyncio.wait_for(stream.read(), 10)
    assert message is not grpc.aio.EOF
    return [wire.from_verify_result(result) for result in message.results], wire.from_step(message.step)


async def eventually(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


def tokens_of(result: VerifyResult) -> tuple[int, ...]:
    assert isinstance(result.outcome, Verdict), result
    return result.outcome.tokens


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 10)
    code: grpc.StatusCode = caught.value.code()
    return code
