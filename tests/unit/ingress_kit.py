"""A target for the router's host process that lives in the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
from paceline.runtime import wire
from paceline.runtime.server import WorkerServer
from paceline.speculation.messages import (
    PROTOCOL_VERSION,
    SAMPLER_VERSION,
    Finish,
    FinishReason,
    TokenSource,
    Verdict,
    VerifyResult,
)
from paceline.v1 import common_pb2 as common
from paceline.v1 import target_pb2 as target
from paceline.v1 import target_pb2_grpc as target_grpc

STEP_S = 0.02


class CountingTarget(target_grpc.TargetServiceServicer):
    """Every token is its position in the session; one per round, without drafts."""

    def __init__(self) -> None:
        self.limits: dict[str, int] = {}

    async def Describe(self, request: Any, context: Any) -> target.TargetDescription:  # noqa: N802
        model = common.ModelDescription(
            model_id="counting", fingerprint="f" * 64, numerics_class="c" * 64, vocab_size=2**20, context_length=2**16
        )
        limits = common.WorkerLimits(max_sessions=64, max_queue=64, max_draft_tokens=4, kv_tokens=2**20)
        return target.TargetDescription(
            protocol_version=PROTOCOL_VERSION,
            sampler_version=SAMPLER_VERSION,
            incarnation="here",
            limits=limits,
            model=model,
        )

    async def Open(self, request: Any, context: Any) -> common.OpenResponse:  # noqa: N802
        opening = wire.from_open(request)
        self.limits[opening.session_id] = opening.prompt_len + opening.sampling.max_tokens
        return common.OpenResponse(incarnation="here", model_id="counting")

    async def Release(self, request: Any, context: Any) -> common.ReleaseResponse:  # noqa: N802
        return common.ReleaseResponse(released=True)

    async def Rounds(self, requests: Any, context: Any) -> AsyncIterator[target.VerifyBatchResult]:  # noqa: N802
        async for batch in requests:
            await asyncio.sleep(STEP_S)
            results = [self._verdict(wire.from_verify_task(task)) for task in batch.tasks]
            yield target.VerifyBatchResult(results=[wire.to_verify_result(result) for result in results])

    def _verdict(self, task: Any) -> VerifyResult:
        position = task.fence.base_len
        last = position + 1 == self.limits[task.fence.session_id]
        finish = Finish(FinishReason.LENGTH) if last else None
        source = (TokenSource.TARGET_ONLY,)
        verdict = Verdict((position,), source, 0, 0, f"{position} ", finish, verifier_model_id="counting")
        return VerifyResult(task.fence, verdict)


@contextlib.asynccontextmanager
async def counting_target() -> AsyncIterator[str]:
    service = CountingTarget()

    def add(server: grpc.aio.Server) -> None:
        target_grpc.add_TargetServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]

    server = WorkerServer("127.0.0.1", 0, services=("paceline.v1.TargetService",), add=add)
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
