"""Live capture: an engine that keeps the hidden states of some sessions it serves, for drafters to be trained on.

It stands between the verifier and the engine and hears all it needs there: which tokens a session begins with, which
of them are final, and when it is over. Hidden states change no bit of a step, so neither does a capture. What is
stored is stored by another thread; whatever does not fit into memory until then is dropped, and counted.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from paceline.cache.target import Sample
from paceline.engine.bits import bf16_bits
from paceline.engine.interface import Engine, EngineInfo, FeatureRows, Hidden, KvRequest, StepPlan, StepResult, Wanted

ANYONE = "*"
Bits = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which sessions are captured."""

    tenants: frozenset[str]  # those who agreed; ANYONE is all of them
    share: float = 1.0  # of their sessions

    def takes(self, session_id: str, tenant: str) -> bool:
        """The same for a session wherever it is opened."""
        if tenant not in self.tenants and ANYONE not in self.tenants:
            return False
        draw = int.from_bytes(hashlib.blake2b(session_id.encode(), digest_size=8).digest(), "little")
        return draw < self.share * 2**64


@dataclass(slots=True)
class _Record:
    """A session that is captured. Invariant: ``rows`` are of positions 0 … held - 1."""

    prompt_len: int = 0  # once a step said so
    tokens: tuple[int, ...] = ()
    final: int = 0  # leading positions that are committed
    held: int = 0
    rows: list[tuple[Bits, Bits]] = field(default_factory=list)

    def cut(self, length: int) -> None:
        """Forget the positions from ``length`` on."""
        while self.held > length:
            layers, last = self.rows.pop()
            start = self.held - len(layers)
            self.held = start
            if length > start:
                self._add(layers[: length - start].copy(), last[: length - start].copy())

    def add(self, start: int, layers: Bits, last: Bits) -> bool:
        """Rows of a step; False if there is a gap before them."""
        self.cut(start)
        if self.held < start:
            return False
        self._add(layers, last)
        return True

    @property
    def size(self) -> int:
        """Bytes of all rows, each as long as the first."""
        if not self.rows:
            return 0
        layers, last = self.rows[0]
        return int(self.held * 2 * (layers.shape[1] + last.shape[1]))

    @property
    def worth(self) -> bool:
        """Whether any of it is final and the target's own."""
        return 0 < self.prompt_len < min(self.final, self.held)

    def sample(self) -> Sample:
        """What is final of the session.

        The answer's last token is never in it: no step has fed it, so it has no states, and a sample has as many
        states as tokens.
        """
        length = min(self.final, self.held)
        self.cut(length)
        mask = np.zeros(length, np.uint8)
        mask[self.prompt_len :] = 1
        return Sample(
            key=0,
            input_ids=np.array(self.tokens[:length], np.int32),
            attention_mask=np.ones(length, np.uint8),
            loss_mask=mask,
            hidden=np.concatenate([layers for layers, _ in self.rows]),
            last_hidden=np.concatenate([last for _, last in self.rows]),
        )

    def _add(self, layers: Bits, last: Bits) -> None:
        self.rows.append((layers, last))
        self.held += len(layers)


@dataclass(slots=True)
class Counts:
    """What became of the sessions that were to be captured."""

    taken: int = 0  # handed over to be stored
    behind: int = 0  # given up: memory was full of what is not stored yet
    broken: int = 0  # given up: some positions had been computed before
    empty: int = 0  # over before anything of the target's own was final, or with a step that failed


class CapturingEngine:
    """The engine it is given, but for what it hears.

    Args:
        layers: whose outputs are kept, beside the last hidden states.
        store: takes a sample's size in bytes and what makes it, at once; True if it will be stored.
        memory_bytes: hidden states of sessions under way, at most.
    """

    def __init__(
        self,
        engine: Engine,
        choice: Choice,
        *,
        layers: tuple[int, ...],
        store: Callable[[int, Callable[[], Sample]], bool],
        memory_bytes: int,
    ) -> None:
        self._engine, self._choice, self._store = engine, choice, store
        self._wanted, self._memory_bytes = Wanted(layers, last=True), memory_bytes
        self._records: dict[str, _Record] = {}
        self._size = 0  # of all records, bytes
        self._lock = threading.Lock()  # steps run in a thread of their own
        self.counts = Counts()

    @property
    def held_bytes(self) -> int:
        """Hidden states of sessions under way."""
        return self._size

    @property
    def info(self) -> EngineInfo:
        """See Engine."""
        return self._engine.info

    def reserve(self, session_id: str, max_len: int) -> bool:
        """See Engine."""
        return self._engine.reserve(session_id, max_len)

    def admit(self, request: KvRequest) -> int | None:
        """See Engine. A session that is captured computes all of its positions: pages that others computed have no
        hidden states."""
        if not self._choice.takes(request.session_id, request.tenant):
            return self._engine.admit(request)
        reused = self._engine.admit(replace(request, share=False))
        if reused is not None:
            with self._lock:
                record = self._records.pop(request.session_id, None) or _Record()
                self._size -= record.size
                record.cut(reused)
                record.tokens, record.final = tuple(request.tokens), reused
                if record.held == reused:
                    self._records[request.session_id] = record
                    self._size += record.size
                else:
                    self.counts.broken += 1
        return reused

    def publish(self, session_id: str, tokens: Sequence[int], length: int) -> None:
        """See Engine."""
        with self._lock:
            if (record := self._records.get(session_id)) is not None:
                record.tokens, record.final = tuple(tokens), length
        self._engine.publish(session_id, tokens, length)

    def free(self, session_id: str, *, keep: bool = True) -> None:
        """See Engine. A session is over, whichever way; what is final of it is stored, unless it broke."""
        with self._lock:
            record = self._records.pop(session_id, None)
            if record is not None:
                self._size -= record.size
                self._end(record, keep)
        self._engine.free(session_id, keep=keep)

    def step(self, plan: StepPlan) -> StepResult:
        """See Engine."""
        with self._lock:
            captured = [piece.session_id in self._records for piece in plan.slices]
        if not any(captured):
            return self._engine.step(plan)
        assert plan.wanted is None, "somebody else wants hidden states of served sessions"
        slices = [
            replace(each, hidden=True) if wants else each for each, wants in zip(plan.slices, captured, strict=True)
        ]
        result = self._engine.step(replace(plan, slices=tuple(slices), wanted=self._wanted))
        for piece, hidden in zip(plan.slices, result.hidden, strict=True):
            if hidden is not None:
                self._take(piece.session_id, piece.start, piece.prompt_len, hidden)
        return replace(result, hidden=())

    def locate_features(self, session_id: str, projector: str, start: int, end: int) -> FeatureRows:
        """See Engine."""
        return self._engine.locate_features(session_id, projector, start, end)

    def read_features(self, rows: Sequence[FeatureRows]) -> list[bytes]:
        """See Engine."""
        return self._engine.read_features(rows)

    def cost_curve(self) -> tuple[tuple[int, float], ...]:
        """See Engine."""
        return self._engine.cost_curve()

    def _end(self, record: _Record, keep: bool) -> None:
        if not keep or not record.worth:
            self.counts.empty += 1
        elif self._store(record.size, record.sample):
            self.counts.taken += 1
        else:
            self.counts.behind += 1

    def _take(self, session_id: str, start: int, prompt_len: int, hidden: Hidden) -> None:
        assert hidden.last is not None
        layers, last = bf16_bits(hidden.layers).copy(), bf16_bits(hidden.last).copy()
        with self._lock:
            record = self._records.get(session_id)
            if record is None:
                return
            before = record.size
            record.prompt_len = prompt_len
            whole = record.add(start, layers, last)
            self._size += record.size - before
            if not whole or self._size > self._memory_bytes:
                self._size -= record.size
                del self._records[session_id]
                self.counts.broken += not whole
                self.counts.behind += whole
