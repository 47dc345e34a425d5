"""DraftService over grpc.aio: translate, call the worker, translate."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

import grpc

from paceline.draft.feature_streams import FeatureStream, FeatureStreams
from paceline.draft.lane import Answer
from paceline.draft.runner import RUN_LIMIT_S, LaneRunner
from paceline.draft.spans import DraftSpans, NoSpans
from paceline.draft.streams import Streams
from paceline.draft.worker import DraftWorker
from paceline.runtime import wire
from paceline.runtime.compute import ComputeThread
from paceline.runtime.server import Context, told
from paceline.runtime.streams import RouterStream, reading
from paceline.runtime.wire_features import from_chunk
from paceline.runtime.worker import WorkerService
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2 as pb
from paceline.v1.draft_pb2_grpc import DraftServiceServicer, add_DraftServiceServicer_to_server

log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["DraftService"].full_name


class DraftService(WorkerService, DraftServiceServicer):
    """Serves one DraftWorker. It has failed when a drafter cannot be relied on any more.

    Args:
        worker: the sessions; touched by the event loop's thread only.
        description: the answer to Describe.
        threads: by drafter, those that made them; new ones for drafters that do not mind.
        spans: told of every run.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        worker: DraftWorker,
        description: pb.DraftDescription,
        *,
        threads: Mapping[str, ComputeThread] | None = None,
        spans: DraftSpans | None = None,
        clock: Callable[[], float] = time.monotonic,
        run_limit_s: float = RUN_LIMIT_S,
    ) -> None:
        streams, self._features = Streams(), FeatureStreams(worker.intake)
        threads = threads or {}

        def deliver(answers: Iterable[Answer]) -> None:
            streams.deliver(answers)
            self._features.wake()  # a run has used features up

        lanes = [
            LaneRunner(
                worker,
                name,
                threads.get(name) or ComputeThread(f"drafter-{name}"),
                deliver=deliver,
                spans=spans or NoSpans(),
                clock=clock,
                run_limit_s=run_limit_s,
            )
            for name in worker.drafters
        ]
        super().__init__("draft worker", worker, description, streams, lanes, log=log, clock=clock)
        self._worker = worker

    # Names and signatures of the RPCs are the stubs'.
    async def Open(self, request: common.SessionOpen, context: Context) -> common.OpenResponse:  # noqa: N802
        async with told(context):
            opening = wire.from_open(request)
            self._worker.open(opening, self._clock())
        self._changed()
        model_id = self._worker.model_id(opening.drafter)
        return common.OpenResponse(incarnation=self._worker.incarnation, model_id=model_id)

    async def Features(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.FeatureChunk], context: Context
    ) -> AsyncIterator[pb.FeatureCredit]:
        stream = self._features.open()
        try:
            async with reading(self._feed(request_iterator, stream), stream, context):
                async for message in stream:
                    yield message
        finally:
            self._features.remove(stream)

    async def stop(self) -> None:
        """See WorkerService."""
        self._features.close()
        await super().stop()

    async def _feed(self, chunks: AsyncIterator[pb.FeatureChunk], stream: FeatureStream) -> None:
        async for message in chunks:
            stream.received(len(message.data))
            self._worker.feed(stream.name, from_chunk(message))
            stream.wake()
            self._wake()

    def _take(self, message: pb.DraftBatch, stream: RouterStream) -> None:
        now = self._clock()
        tasks = [wire.from_draft_task(task) for task in message.tasks]
        answers = [self._worker.submit(stream.router_id, task, now) for task in tasks]
        results = [wire.to_draft_result(answer) for answer in answers if answer is not None]
        if results:
            stream.send(pb.DraftBatchResult(results=results))
        self._features.wake()  # features that were forgotten may be wanted again

    def _changed(self) -> None:
        self._wake()  # drafters are told of sessions

    def _gone(self, router_id: str, dropped: int) -> None:
        self._changed()


def add_to(service: DraftService) -> Callable[[grpc.aio.Server], None]:
    """What WorkerServer's ``add`` wants."""
    return lambda server: add_DraftServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
