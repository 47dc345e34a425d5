"""TargetService over grpc.aio: translate, call the verifier, translate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc

from paceline.engine.interface import Engine
from paceline.runtime import wire
from paceline.runtime.server import abort
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import Resync, ResyncReason
from paceline.target.spans import NoSpans, Spans
from paceline.target.steps import STEP_LIMIT_S, StepLoop
from paceline.target.streams import RouterStream, Streams
from paceline.target.verifier import Verifier
from paceline.v1 import common_pb2 as common
from paceline.v1 import target_pb2 as pb
from paceline.v1.target_pb2_grpc import TargetServiceServicer, add_TargetServiceServicer_to_server

log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TargetService"].full_name
FILE_CHUNK_BYTES = 256 * 1024
HOUSEKEEPING_S = 5.0

Context = grpc.aio.ServicerContext[Any, Any]


@contextlib.asynccontextmanager
async def _told(context: Context) -> AsyncIterator[None]:
    """Whatever goes wrong inside is told to the caller as a status; bugs are logged, and told as INTERNAL."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # abort logs what isn't an error of ours
        await abort(context, error)


class TargetService(TargetServiceServicer):
    """Serves one Verifier.

    ``failed`` is set when the engine or our own code cannot be relied on any more: the process should stop serving and
    exit.

    Args:
        verifier: touched by the event loop's thread only.
        engine: its ``step`` runs in a thread of its own.
        description: the answer to Describe.
        files: the tokenizer's, name -> content.
        spans: told of every step.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        verifier: Verifier,
        engine: Engine,
        description: pb.TargetDescription,
        files: Mapping[str, bytes],
        *,
        spans: Spans | None = None,
        clock: Callable[[], float] = time.monotonic,
        step_limit_s: float = STEP_LIMIT_S,
        housekeeping_s: float = HOUSEKEEPING_S,
    ) -> None:
        self.failed = asyncio.Event()
        self._verifier, self._description, self._files = verifier, description, files
        self._clock, self._housekeeping_s = clock, housekeeping_s
        self._streams = Streams()
        self._steps = StepLoop(
            verifier,
            engine,
            deliver=self._streams.deliver,
            spans=spans or NoSpans(),
            clock=clock,
            step_limit_s=step_limit_s,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the step loop and the housekeeping."""
        self._tasks = [asyncio.create_task(self._steps.run()), asyncio.create_task(self._housekeeping())]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """End the streams, so that routers look for another target, and stop working."""
        self._streams.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._steps.close()

    # Names and signatures of the RPCs are the stubs'.
    async def Describe(self, request: common.DescribeRequest, context: Context) -> pb.TargetDescription:  # noqa: N802
        return self._description

    async def Open(self, request: common.SessionOpen, context: Context) -> common.OpenResponse:  # noqa: N802
        async with _told(context):
            self._verifier.open(wire.from_open(request), self._clock())
        return common.OpenResponse(incarnation=self._verifier.incarnation, model_id=self._verifier.info.model_id)

    async def Release(self, request: common.ReleaseRequest, context: Context) -> common.ReleaseResponse:  # noqa: N802
        return common.ReleaseResponse(released=self._verifier.release(request.session_id, request.lease_epoch))

    async def FetchTokenizer(  # noqa: N802
        self, request: pb.FetchTokenizerRequest, context: Context
    ) -> AsyncIterator[common.FileChunk]:
        for name, data in self._files.items():
            for start in range(0, max(1, len(data)), FILE_CHUNK_BYTES):
                end = start + FILE_CHUNK_BYTES
                yield common.FileChunk(name=name, data=data[start:end], last=end >= len(data))

    async def Rounds(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.VerifyBatch], context: Context
    ) -> AsyncIterator[pb.VerifyBatchResult]:
        stream = self._streams.add()
        reader = asyncio.create_task(self._read(request_iterator, stream))
        reader.add_done_callback(lambda _: stream.close())
        try:
            async for message in stream:
                yield message
            async with _told(context):
                if stream.failure is not None:
                    raise stream.failure
                if reader.done() and not reader.cancelled():
                    reader.result()
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            if self._streams.remove(stream):
                dropped = self._verifier.drop_router(stream.router_id)
                log.info("router %s is gone; %d sessions released", stream.router_id, dropped)

    async def _read(self, requests: AsyncIterator[pb.VerifyBatch], stream: RouterStream) -> None:
        async for message in requests:
            stream.name(message.router_id)
            answers = pb.VerifyBatchResult()
            for task in message.tasks:  # all of them before the loop runs again: they share a step
                answer = self._submit(stream.router_id, task)
                if answer is not None:
                    answers.results.append(answer)
            if answers.results:
                stream.send(answers)
            self._steps.wake()

    def _submit(self, router_id: str, message: pb.VerifyTask) -> pb.VerifyResult | None:
        try:
            task = wire.from_verify_task(message)
        except InvalidRequest as error:  # told to whoever sent it, at no cost to the rounds beside it
            log.warning("router %s sent a broken round: %s", router_id, error)
            broken = Resync(ResyncReason.UNKNOWN_SESSION)
            return pb.VerifyResult(fence=message.fence, resync=wire.to_resync(broken))
        result = self._verifier.submit(router_id, task, self._clock())
        return wire.to_verify_result(result) if result is not None else None

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(self._housekeeping_s)
            expired = self._verifier.expire(self._clock())
            if expired:
                log.info("%d idle sessions released", expired)
            self._verifier.check_integrity()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.error("the target failed: %r", task.exception(), exc_info=task.exception())
            self.failed.set()


def add_to(service: TargetService) -> Callable[[grpc.aio.Server], None]:
    """What WorkerServer's ``add`` wants."""
    return lambda server: add_TargetServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
