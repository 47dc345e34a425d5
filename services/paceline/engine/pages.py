"""Pages of KV state: which session holds which, which are shared, which may be evicted. Plain Python, no tensors.

A page is in one of three states:

- *free*: its content means nothing;
- *held* by one session or more; only a page all of whose tokens are committed is *published* and may be held by others;
- *idle*: published, held by nobody; kept for whoever has the same prefix, and evicted when somebody needs room.

A session reserves all pages it can ever need before it starts, so that free + idle pages are all there is to admit by,
and an admitted session is never stopped. It writes only from its published pages on, so shared pages need no copies.
Page 0 belongs to nobody: it stands in wherever a page number has to be padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline.engine.interface import KvRequest, StepPlan
from paceline.engine.prefix import PrefixIndex, extend
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
    """What one session holds. Invariant: published <= length <= reserved <= capacity."""

    pages: list[int] = field(default_factory=list)
    length: int = 0  # positions written and still valid
    reserved: int = 0  # positions the session may grow to
    salt: bytes = b""  # what its keys start from; empty if it never shares
    keys: list[bytes] = field(default_factory=list)  # of its leading pages, which others may hold too

    @property
    def capacity(self) -> int:
        return len(self.pages) * PAGE

    @property
    def published(self) -> int:
        """Positions that may not be written any more."""
        return len(self.keys) * PAGE


@dataclass(frozen=True, slots=True)
class Admission:
    """A session that was let in."""

    reused: int  # leading positions that need not be computed
    fresh: list[int]  # pages newly given to it, whose content means nothing


class BlockTable:
    """Hands out pages to sessions, and checks every plan against what its sessions hold.

    Invariant: free + held + idle pages == total.
    """

    def __init__(self, kv_tokens: int) -> None:
        self.total = max(1, kv_tokens // PAGE)
        self._free = list(range(self.total, 0, -1))  # page 0 is the zero page
        self._sessions: dict[str, Holding] = {}
        self._holders = [0] * (self.total + 1)  # sessions that hold each page
        self._index = PrefixIndex()

    @property
    def tokens(self) -> int:
        """Positions that can be held in all."""
        return self.total * PAGE

    @property
    def free_tokens(self) -> int:
        """Positions nobody holds, those on idle pages included."""
        return (len(self._free) + self._index.idle) * PAGE

    @property
    def idle_tokens(self) -> int:
        """Positions kept for whoever has the same prefix."""
        return self._index.idle * PAGE

    def reserve(self, session_id: str, max_len: int) -> list[int] | None:
        """Pages newly given to the session so that it can hold ``max_len`` positions; None if they are not there."""
        assert max_len > 0, max_len
        holding = self._sessions.get(session_id)
        missing = _pages(max_len) - (len(holding.pages) if holding else 0)
        if missing > len(self._free) + self._index.idle:
            return None
        if holding is None:
            holding = self._sessions[session_id] = Holding()
        fresh = [self._take() for _ in range(missing)]
        holding.pages += fresh
        holding.reserved = max(holding.reserved, max_len)
        return fresh

    def admit(self, request: KvRequest, salt: bytes) -> Admission | None:
        """Reserve for a session that starts, on published pages as far as its tokens are on them.

        A session that is held goes on with its pages if it will not write to published ones; else it starts over, on
        what is published of it. None, and nothing changed, if there is no room, or its pages would have to change while
        it is in a step. ``salt`` is what its keys start from.
        """
        shared: tuple[list[int], list[bytes]] = [], []
        if request.share:  # the last token is always computed: somebody wants to know what follows it
            shared = self._index.longest(salt, request.tokens[:-1], page=PAGE)
        held = self._sessions.get(request.session_id)
        goes_on = held is not None and held.salt == salt and held.published <= request.kept <= held.length
        if request.in_step:
            assert held is not None, f"session {request.session_id} is in a step and holds nothing"
            fits = goes_on and request.max_len <= held.reserved
            return Admission(request.kept, []) if fits else None
        if goes_on and len(shared[0]) * PAGE <= request.kept:
            fresh = self.reserve(request.session_id, request.max_len)
            return None if fresh is None else Admission(request.kept, fresh)
        return self._start(request, salt, *shared)

    def publish(self, session_id: str, tokens: Sequence[int], length: int) -> int:
        """Let others share what a session holds: its first ``length`` positions, which are those tokens, committed.

        Only full pages are published. Returns how many pages this was news of.
        """
        holding = self.holding(session_id)
        assert length <= holding.length, f"{session_id}: publishes {length}, holds {holding.length}"
        assert holding.salt, f"{session_id} does not share"
        before = len(holding.keys)
        for number in range(before, length // PAGE):
            last = holding.keys[-1] if holding.keys else holding.salt
            key = extend(last, tokens[number * PAGE : (number + 1) * PAGE])
            holding.keys.append(key)
            self._index.add(key, holding.pages[number])
        return len(holding.keys) - before

    def free(self, session_id: str, *, keep: bool = True) -> None:
        """Take a session's pages back. Unknown sessions are ignored.

        ``keep`` leaves what it published to others; without it nobody will find these pages again.
        """
        holding = self._sessions.pop(session_id, None)
        if holding is None:
            return
        for page in reversed(holding.pages):  # a prefix is of no use without its beginning, so ends are evicted first
            if not keep:
                self._index.forget(page)
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if page in self._index:
                    self._index.rest(page)
                else:
                    self._free.append(page)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    def holding(self, session_id: str) -> Holding:
        """What a session holds; it must be reserved."""
        assert session_id in self._sessions, f"session {session_id} was not reserved"
        return self._sessions[session_id]

    def slots(self, session_id: str, start: int, end: int) -> tuple[int, ...]:
        """Where positions start … end - 1 of a session lie: page * PAGE + place on the page."""
        holding = self.holding(session_id)
        assert 0 <= start <= end <= holding.capacity, (session_id, start, end, holding.capacity)
        pages = holding.pages
        return tuple(pages[at // PAGE] * PAGE + at % PAGE for at in range(start, end))

    def begin(self, plan: StepPlan) -> None:
        """Check a plan and forget what its sessions hold at or after each start, before anything is overwritten."""
        assert plan.slices, "a step needs at least one slice"
        assert len({piece.session_id for piece in plan.slices}) == len(plan.slices), "a session appears twice"
        for piece in plan.slices:
            holding = self.holding(piece.session_id)
            assert piece.start <= holding.length, f"{piece.session_id}: start {piece.start}, holds {holding.length}"
            assert piece.end <= holding.reserved, f"{piece.session_id}: end {piece.end}, reserved {holding.reserved}"
            assert piece.start >= holding.published, (
                f"{piece.session_id}: start {piece.start}, published {holding.published}"
            )
        for piece in plan.slices:
            self.holding(piece.session_id).length = piece.start

    def commit(self, plan: StepPlan) -> None:
        """The step ran: its sessions now hold what it wrote."""
        for piece in plan.slices:
            self.holding(piece.session_id).length = piece.end

    def check_integrity(self) -> None:
        """Every page is free, held or idle; shared pages are published, at one place; no session exceeds its pages."""
        self._index.check_integrity()
        holders: dict[int, list[tuple[str, int]]] = {}
        for session_id, holding in self._sessions.items():
            assert holding.published <= holding.length <= holding.reserved <= holding.capacity, (session_id, holding)
            for place, page in enumerate(holding.pages):
                holders.setdefault(page, []).append((session_id, place))
        for page, found in holders.items():
            assert len({place for _, place in found}) == 1, (page, found)
            shared = len(found) == 1 or all(place < len(self._sessions[name].keys) for name, place in found)
            assert shared, f"page {page} is held by {found} and not published by all"
            assert not self._index.is_idle(page), f"page {page} is idle and held by {found}"
        assert {page: len(found) for page, found in holders.items()} == {
            page: count for page, count in enumerate(self._holders) if count
        }, "holders are counted wrongly"
        idle = {page for page in range(1, self.total + 1) if self._index.is_idle(page)}
        free = set(self._free)
        terms = f"free {len(self._free)} + held {len(holders)} + idle {self._index.idle} != total {self.total}"
        assert len(self._free) + len(holders) + self._index.idle == self.total, terms
        assert free | holders.keys() | idle == set(range(1, self.total + 1)), terms
        assert not any(page in self._index for page in free), "a free page is published"

    def _start(self, request: KvRequest, salt: bytes, pages: list[int], keys: list[bytes]) -> Admission | None:
        """Start a session, over if it is held, on published pages."""
        need = _pages(request.max_len) - len(pages)
        if need > self._available(request.session_id, pages):
            return None
        for page in pages:  # before its own are let go: some of them may be the same
            self._holders[page] += 1
            self._index.hold(page)
        self.free(request.session_id)
        fresh = [self._take() for _ in range(need)]
        length = len(pages) * PAGE
        self._sessions[request.session_id] = Holding([*pages, *fresh], length, request.max_len, salt, keys)
        return Admission(length, fresh)

    def _available(self, session_id: str, kept: list[int]) -> int:
        """Pages there are for a session that lets go of all of its own but ``kept``, while ``kept`` are held."""
        holding = self._sessions.get(session_id)
        own = set(holding.pages if holding else ()) - set(kept)
        given_back = sum(self._holders[page] == 1 for page in own)
        return len(self._free) + self._index.idle - sum(map(self._index.is_idle, kept)) + given_back

    def _take(self) -> int:
        page = self._free.pop() if self._free else self._index.evict()
        self._holders[page] += 1
        return page


def _pages(positions: int) -> int:
    return -(-positions // PAGE)
