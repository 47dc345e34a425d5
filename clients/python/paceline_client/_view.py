"""What a stream tells about itself, the same for both clients."""

from __future__ import annotations

from collections.abc import Callable

from paceline_client._resume import Exchange
from paceline_client._types import Finish, Partial, SpeculationMetrics, Started, Usage


class AnswerView:
    """Read-only facts of an answer under way or done."""

    def __init__(self, exchange: Exchange, clock: Callable[[], float]) -> None:
        self._exchange = exchange
        self._clock = clock

    @property
    def started(self) -> Started | None:
        """Who generates the answer, from what; None before the first message. A resume doesn't change it."""
        return self._exchange.assembly.started

    @property
    def usage(self) -> Usage | None:
        """Tokens used; None until the answer is complete."""
        return self._exchange.assembly.usage

    @property
    def finish(self) -> Finish | None:
        """Why generation ended; None until it has."""
        return self._exchange.assembly.finish

    @property
    def speculation(self) -> SpeculationMetrics | None:
        """How speculation went; None until the answer is complete."""
        return self._exchange.assembly.metrics

    @property
    def received(self) -> Partial:
        """Text and tokens so far."""
        return self._exchange.received

    @property
    def lease_epoch(self) -> int:
        """The last lease epoch seen; 0 before the first message."""
        return self._exchange.assembly.lease_epoch

    @property
    def numerics_class(self) -> str:
        """The numerics class of the last Started; empty before the first message."""
        return self._exchange.assembly.numerics_class

    @property
    def resumes(self) -> int:
        """How often the answer went on after its stream was lost."""
        return self._exchange.resumes

    @property
    def stall_s(self) -> float:
        """Seconds without a stream that made progress, from each break to the next token."""
        return self._exchange.stall_s(self._clock())

    @property
    def class_changed(self) -> bool:
        """True if the answer went on in another numerics class than it began in."""
        return self._exchange.assembly.class_changed
