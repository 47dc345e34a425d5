"""DraftService over grpc.aio: translate, call the worker, translate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from paceline.draft.runner import RUN_LIMIT_S, LaneRunner
from paceline.draft.spans import DraftSpans, NoSpans
from paceline.draft.streams import RouterStream, Streams
from paceline.draft.worker import DraftWorker
from paceline.runtime import wire
from paceline.runtime.server import abort
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2 as pb
from paceline.v1.draft_pb2_grpc import DraftServiceServicer, add_DraftServiceServicer_to_server

log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["DraftService"].full_name
HOUSEKEEPING_S = 5.0
FEATURES_RESERVED = "Features is reserved for drafters that need hidden states; this worker offers none of them"

Context = grpc.aio.ServicerContext[Any, Any]


@contextlib.asynccontextmanager
async def _told(context: Context) -> AsyncIterator[None]:
    """Whatever goes wrong inside is told to the caller as a status; bugs are logged, and told as INTERNAL."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # abort logs what isn't an error of ours
        await abort(context, error)


class DraftService(DraftServiceServicer):
    """Serves one DraftWorker.

    ``failed`` is set when a drafter cannot be relied on any more: the process should stop serving and exit.

    Args:
        worker: the sessions; touched by the event loop's thread only.
        description: the answer to Describe.
        spans: told of every run.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        worker: DraftWorker,
        description: pb.DraftDescription,
        *,
        spans: DraftSpans | None = None,
        clock: Callable[[], float] = time.monotonic,
        run_limit_s: float = RUN_LIMIT_S,
    ) -> None:
        self.failed = asyncio.Event()
        self._worker, self._description, self._clock = worker, description, clock
        self._streams = Streams()
        self._lanes = [
            LaneRunner(
                worker,
                name,
                deliver=self._streams.deliver,
                spans=spans or NoSpans(),
                clock=clock,
                run_limit_s=run_limit_s,
            )
            for name in worker.drafters
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the lanes and the housekeeping."""
        work = [lane.run() for lane in self._lanes]
        self._tasks = [asyncio.create_task(job) for job in (*work, self._housekeeping())]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """End the streams, so that routers look for another worker, and stop working."""
        self._streams.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in self._lanes:
            lane.close()

    # Names and signatures of the RPCs are the stubs'.
    async def Describe(self, request: common.DescribeRequest, context: Context) -> pb.DraftDescription:  # noqa: N802
        return self._description

    async def Open(self, request: common.SessionOpen, context: Context) -> common.OpenResponse:  # noqa: N802
        async with _told(context):
            opening = wire.from_open(request)
            self._worker.open(opening, self._clock())
        self._wake()
        model_id = self._worker.model_id(opening.drafter)
        return common.OpenResponse(incarnation=self._worker.incarnation, model_id=model_id)

    async def Release(self, request: common.ReleaseRequest, context: Context) -> common.ReleaseResponse:  # noqa: N802
        released = self._worker.release(request.session_id, request.lease_epoch)
        self._wake()
        return common.ReleaseResponse(released=released)

    async def Rounds(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.DraftBatch], context: Context
    ) -> AsyncIterator[pb.DraftBatchResult]:
        stream = self._streams.add()
        reader = asyncio.create_task(self._read(request_iterator, stream))
        reader.add_done_callback(lambda _: stream.close())
        try:
            async for message in stream:
                yield message
            async with _told(context):
                if reader.done() and not reader.cancelled():
                    reader.result()
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            if self._streams.remove(stream):
                self._worker.drop_router(stream.router_id)
                self._wake()

    async def Features(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.FeatureChunk], context: Context
    ) -> AsyncIterator[pb.FeatureCredit]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, FEATURES_RESERVED)
        yield pb.FeatureCredit()  # never reached: it makes this a stream

    async def _read(self, requests: AsyncIterator[pb.DraftBatch], stream: RouterStream) -> None:
        async for message in requests:
            stream.name(message.router_id)
            now = self._clock()
            tasks = [wire.from_draft_task(task) for task in message.tasks]
            answers = [self._worker.submit(stream.router_id, task, now) for task in tasks]
            stream.send([answer for answer in answers if answer is not None])
            self._wake()

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            expired = self._worker.expire(self._clock())
            if expired:
                log.info("%d idle sessions released", expired)
            self._worker.check_integrity()
            self._wake()

    def _wake(self) -> None:
        for lane in self._lanes:
            lane.wake()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.error("draft worker failed: %r", task.exception(), exc_info=task.exception())
            self.failed.set()


def add_to(service: DraftService) -> Callable[[grpc.aio.Server], None]:
    """What WorkerServer's ``add`` wants."""
    return lambda server: add_DraftServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
