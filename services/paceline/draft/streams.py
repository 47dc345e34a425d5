"""The round streams of the routers, as a draft worker answers on them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from paceline.draft.lane import Answer
from paceline.runtime import streams, wire
from paceline.speculation.messages import DraftResult
from paceline.v1 import draft_pb2 as pb

log = logging.getLogger(__name__)


class RouterStream(streams.RouterStream):
    """The answers' way back to one router. One that doesn't read loses them, as it would lose late ones."""

    def _overflow(self, message: Any) -> None:
        log.warning("router %s does not read its answers; %d dropped", self.router_id, len(message.results))


class Streams(streams.Streams):
    """All open streams."""

    def __init__(self) -> None:
        super().__init__(RouterStream)

    def deliver(self, answers: Iterable[Answer]) -> None:
        """Send answers, those of one router as one message; those of routers that are gone are dropped."""
        by_router: dict[str, list[DraftResult]] = {}
        for router_id, result in answers:
            by_router.setdefault(router_id, []).append(result)
        for router_id, results in by_router.items():
            stream = self.latest(router_id)
            if stream is not None:
                stream.send(pb.DraftBatchResult(results=[wire.to_draft_result(result) for result in results]))
