"""The round streams of the routers, as a target answers on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paceline.runtime import streams, wire
from paceline.runtime.server import MAX_MESSAGE_BYTES
from paceline.speculation.errors import Overloaded
from paceline.speculation.messages import StepReport, VerifyResult
from paceline.v1 import target_pb2 as pb

RETRY_STUCK_S = 1.0
MESSAGE_BYTES = MAX_MESSAGE_BYTES // 4


class RouterStream(streams.RouterStream):
    """The answers' way back to one router. One that doesn't read them loses its stream, and its sessions with it."""

    def _overflow(self, message: Any) -> None:
        text = f"router {self.router_id} leaves {self._max_unsent} messages unread"
        self.failure = Overloaded(text, retry_after_s=RETRY_STUCK_S)
        while not self._unsent.empty():
            self._unsent.get_nowait()
        self.close()


class Streams(streams.Streams):
    """All open streams."""

    def __init__(self) -> None:
        super().__init__(RouterStream)

    def deliver(self, results: Mapping[str, Sequence[VerifyResult]], step: StepReport) -> None:
        """Send a step's answers, those of one router as one message; those of routers that are gone are dropped.

        Log probabilities can make them larger than a message may be: then there are more, of which the first tells of
        the step.
        """
        for router_id, answers in results.items():
            stream = self.latest(router_id)
            if stream is None:
                continue
            message = pb.VerifyBatchResult(step=wire.to_step(step))
            size = 0
            for each in answers:
                result = wire.to_verify_result(each)
                size += result.ByteSize()
                if size > MESSAGE_BYTES and message.results:
                    stream.send(message)
                    message, size = pb.VerifyBatchResult(), result.ByteSize()
                message.results.append(result)
            stream.send(message)
