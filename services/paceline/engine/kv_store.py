"""Paged KV state: which pages a session holds, and the tensors behind them.

The bookkeeping is plain Python, shared with the fake engine; the tensors are one K and one V per layer, allocated once.
Page 0 belongs to nobody and stays zero: it stands in wherever a page index has to be padded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paceline.engine.interface import StepPlan
from paceline.speculation.errors import InvalidRequest

PAGE = 16  # positions per page


def context_exceeded(max_len: int, context_length: int) -> InvalidRequest:
    """The error for a session longer than a model can read."""
    return InvalidRequest(
        "max_tokens",
        expected=f"prompt and answer within {context_length} tokens together",
        got=max_len,
        hint="ask for fewer tokens or send a shorter prompt",
    )


@dataclass(slots=True)
class Holding:
    """What one session holds. Invariant: 0 <= length <= capacity."""

    pages: list[int] = field(default_factory=list)
    length: int = 0  # positions written and still valid
    reserved: int = 0  # positions the session may grow to

    @property
    def capacity(self) -> int:
        return len(self.pages) * PAGE


class BlockTable:
    """Hands out pages to sessions, and checks every plan against what its sessions hold.

    Invariant: free pages + held pages == total; a page belongs to at most one session.
    """

    def __init__(self, kv_tokens: int) -> None:
        self.total = max(1, kv_tokens // PAGE)
        self._free = list(range(self.total, 0, -1))  # page 0 is the zero page
        self._sessions: dict[str, Holding] = {}

    @property
    def tokens(self) -> int:
        """Positions that can be held in all."""
        return self.total * PAGE

    @property
    def free_tokens(self) -> int:
        return len(self._free) * PAGE

    def reserve(self, session_id: str, max_len: int) -> list[int] | None:
        """Pages newly given to the session so that it can hold ``max_len`` positions; None if they are not there."""
        assert max_len > 0, max_len
        holding = self._sessions.get(session_id)
        held = len(holding.pages) if holding else 0
        missing = -(-max_len // PAGE) - held
        if missing > len(self._free):
            return None
        if holding is None:
            holding = self._sessions[session_id] = Holding()
        fresh = [self._free.pop() for _ in range(missing)]
        holding.pages += fresh
        holding.reserved = max(holding.reserved, max_len)
        return fresh

    def free(self, session_id: str) -> None:
        """Take a session's pages back. Unknown sessions are ignored."""
        holding = self._sessions.pop(session_id, None)
        if holding is not None:
            self._free += reversed(holding.pages)

    def holding(self, session_id: str) -> Holding:
        """What a session holds; it must be reserved."""
        assert session_id in self._sessions, f"session {session_id} was not reserved"
        return self._sessions[session_id]

    def begin(self, plan: StepPlan) -> None:
        """Check a plan and forget what its sessions hold at or after each start, before anything is overwritten."""
        assert plan.slices, "a step needs at least one slice"
        assert len({piece.session_id for piece in plan.slices}) == len(plan.slices), "a session appears twice"
        for piece in plan.slices:
            holding = self.holding(piece.session_id)
            assert piece.start <= holding.length, f"{piece.session_id}: start {piece.start}, holds {holding.length}"
            assert piece.end <= holding.reserved, f"{piece.session_id}: end {piece.end}, reserved {holding.reserved}"
        for piece in plan.slices:
            self.holding(piece.session_id).length = piece.start

    def commit(self, plan: StepPlan) -> None:
        """The step ran: its sessions now hold what it wrote."""
        for piece in plan.slices:
            self.holding(piece.session_id).length = piece.end

    def check_integrity(self) -> None:
        """Every page is free or held once, and no session holds more than its pages."""
        held = [page for holding in self._sessions.values() for page in holding.pages]
        free, total = len(self._free), self.total
        assert free + len(held) == total, f"free {free} + held {len(held)} != total {total}"
        assert len(set(held) | set(self._free)) == total, "a page is held twice"
        for session_id, holding in self._sessions.items():
            assert 0 <= holding.length <= holding.reserved <= holding.capacity, (session_id, holding)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """KV geometry of one attention layer."""

    kv_heads: int
    key_dim: int
    value_dim: int


class KVStore:
    """K and V of every layer: [(pages + 1) * PAGE, heads * dim] each, in the model's dtype, allocated here and never
    again."""

    def __init__(
        self, shapes: Sequence[LayerShape], table: BlockTable, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        slots = (table.total + 1) * PAGE

        def store(dims: int) -> Tensor:
            return torch.zeros(slots, dims, dtype=dtype, device=device)

        self.shapes = tuple(shapes)
        self.keys = [store(shape.kv_heads * shape.key_dim) for shape in shapes]
        self.values = [store(shape.kv_heads * shape.value_dim) for shape in shapes]
        self._table = table
        self._stale: deque[int] = deque()  # handed out, not yet zeroed; append and popleft are atomic

    def reserve(self, session_id: str, max_len: int) -> bool:
        """Pages for a session; they are zeroed by ``clear``. Pure bookkeeping: any thread may call it."""
        fresh = self._table.reserve(session_id, max_len)
        if fresh is None:
            return False
        self._stale.extend(fresh)
        return True

    def clear(self) -> None:
        """Zero the pages handed out since the last step; to be called before a step, in the engine's thread.

        Masked positions take part in products with weight 0: a former owner's inf or NaN would come through, and one
        session's bits would depend on another's past.
        """
        fresh = [self._stale.popleft() for _ in range(len(self._stale))]
        if not fresh:
            return
        index = torch.tensor(fresh, device=self.keys[0].device)
        for tensor in (*self.keys, *self.values):
            tensor.view(-1, PAGE * tensor.shape[1]).index_fill_(0, index, 0)

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store rows. slots: int64 [n]; key: [n, kv_heads, key_dim]; value: [n, kv_heads, value_dim]."""
        self.keys[layer].index_copy_(0, slots, key.reshape(len(slots), -1))
        self.values[layer].index_copy_(0, slots, value.reshape(len(slots), -1))

    @staticmethod
    def gather(store: Tensor, pages: Tensor, *, block: int, heads: int) -> Tensor:
        """float32 copies of pages, per head. pages: int64 [blocks * block / PAGE] → [blocks, heads, block, dim]."""
        rows = store.view(-1, PAGE * store.shape[1]).index_select(0, pages)
        by_head = rows.view(-1, block, heads, store.shape[1] // heads).transpose(1, 2)
        return torch.empty(by_head.shape, dtype=torch.float32, device=store.device).copy_(by_head)
