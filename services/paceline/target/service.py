"""TargetService over grpc.aio: translate, call the verifier, translate."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping

import grpc

from paceline.engine.interface import Engine
from paceline.runtime import wire
from paceline.runtime.compute import ComputeThread
from paceline.runtime.server import Context, told
from paceline.runtime.streams import RouterStream
from paceline.runtime.worker import HOUSEKEEPING_S, WorkerService
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import Resync, ResyncReason
from paceline.target.feeder import Connect, Feeder, insecure
from paceline.target.grammars import Compiler, GrammarDesk
from paceline.target.spans import NoSpans, Spans
from paceline.target.steps import STEP_LIMIT_S, StepLoop
from paceline.target.streams import Streams
from paceline.target.verifier import Verifier
from paceline.v1 import common_pb2 as common
from paceline.v1 import target_pb2 as pb
from paceline.v1.target_pb2_grpc import TargetServiceServicer, add_TargetServiceServicer_to_server

log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TargetService"].full_name
FILE_CHUNK_BYTES = 256 * 1024


class TargetService(WorkerService, TargetServiceServicer):
    """Serves one Verifier. It has failed when the engine or our own code cannot be relied on any more.

    Args:
        verifier: touched by the event loop's thread only.
        engine: its ``step`` runs in ``thread``.
        description: the answer to Describe.
        files: the tokenizer's, name -> content.
        thread: the one that loaded the engine; a new one for engines that do not mind.
        compiler: of grammars; without one they are refused.
        connect: how draft workers that need context features are reached.
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
        thread: ComputeThread | None = None,
        compiler: Compiler | None = None,
        connect: Connect = insecure,
        spans: Spans | None = None,
        clock: Callable[[], float] = time.monotonic,
        step_limit_s: float = STEP_LIMIT_S,
        housekeeping_s: float = HOUSEKEEPING_S,
    ) -> None:
        streams, thread = Streams(), thread or ComputeThread("engine")
        feeder = Feeder(verifier.feeds, engine, thread, connect=connect)
        steps = StepLoop(
            verifier,
            engine,
            thread,
            deliver=streams.deliver,
            feeder=feeder,
            spans=spans or NoSpans(),
            clock=clock,
            step_limit_s=step_limit_s,
        )
        super().__init__(
            "the target",
            verifier,
            description,
            streams,
            [steps, feeder],
            log=log,
            clock=clock,
            housekeeping_s=housekeeping_s,
        )
        self._verifier, self._files = verifier, files
        self._grammars = GrammarDesk(compiler)

    async def stop(self) -> None:
        """See WorkerService."""
        await super().stop()
        self._grammars.close()

    # Names and signatures of the RPCs are the stubs'.
    async def Open(self, request: common.SessionOpen, context: Context) -> common.OpenResponse:  # noqa: N802
        async with told(context):
            opening = wire.from_open(request)
            self._verifier.open(opening, self._clock(), await self._grammars.state(opening))
        return common.OpenResponse(incarnation=self._verifier.incarnation, model_id=self._verifier.info.model_id)

    async def FetchTokenizer(  # noqa: N802
        self, request: pb.FetchTokenizerRequest, context: Context
    ) -> AsyncIterator[common.FileChunk]:
        for name, data in self._files.items():
            for start in range(0, max(1, len(data)), FILE_CHUNK_BYTES):
                end = start + FILE_CHUNK_BYTES
                yield common.FileChunk(name=name, data=data[start:end], last=end >= len(data))

    def _take(self, message: pb.VerifyBatch, stream: RouterStream) -> None:
        answers = pb.VerifyBatchResult()
        for task in message.tasks:  # all of them before the loop runs again: they share a step
            answer = self._submit(stream.router_id, task)
            if answer is not None:
                answers.results.append(answer)
        if answers.results:
            stream.send(answers)

    def _submit(self, router_id: str, message: pb.VerifyTask) -> pb.VerifyResult | None:
        try:
            task = wire.from_verify_task(message)
        except InvalidRequest as error:  # told to whoever sent it, at no cost to the rounds beside it
            log.warning("router %s sent a broken round: %s", router_id, error)
            broken = Resync(ResyncReason.UNKNOWN_SESSION)
            return pb.VerifyResult(fence=message.fence, resync=wire.to_resync(broken))
        result = self._verifier.submit(router_id, task, self._clock())
        return wire.to_verify_result(result) if result is not None else None

    def _changed(self) -> None:
        pass  # the engine is told of sessions by the verifier, between steps

    def _gone(self, router_id: str, dropped: int) -> None:
        log.info("router %s is gone; %d sessions released", router_id, dropped)


def add_to(service: TargetService) -> Callable[[grpc.aio.Server], None]:
    """What WorkerServer's ``add`` wants."""
    return lambda server: add_TargetServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
