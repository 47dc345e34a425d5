"""Who gets rows of the next step: fair between routers, answers under way before prompts, prompts never starved.

There is no prefill and no decoding, only tokens that are not in the KV state yet. A round that misses one token is
under way; one that misses more is catching up, in chunks if need be, and its last chunk is an ordinary round.

The rule, for a step of S rows:
1. While rounds are catching up, a quarter of the rows (at least one) is theirs.
2. From the others, rounds under way get one row each, in fair order; then drafts, position by position across all
   rounds, because earlier positions are likelier to be accepted.
3. What is left is divided among those catching up, in chunks of MIN_CHUNK rows or an equal part, whichever is more, so
   that one long prompt does not hold up short ones behind it; what short ones leave goes round again.
4. Rounds that have caught up get rows for their drafts, if any are left.

Everyone who got nothing is ahead of everyone who got something next time (see FairQueue).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIN_CHUNK = 16  # smaller chunks re-read a prompt's KV more often than they help anybody
CATCH_UP_SHARE = 4  # one row in so many is for rounds that are catching up
MIN_STEP_TOKENS = 2  # one for those under way, one for those catching up


@dataclass(slots=True)
class Share:
    """A round's rows in a step. Invariants: 0 <= rows <= missing; drafts > 0 only if rows == missing."""

    missing: int  # tokens not in the KV state; at least one, for the last token is always fed
    wanted: int  # draft tokens that may be verified
    rows: int = 0  # of the missing tokens, how many are fed
    drafts: int = 0  # draft tokens fed

    @property
    def caught_up(self) -> bool:
        """Whether the step samples for this round."""
        return self.rows == self.missing

    @property
    def total(self) -> int:
        return self.rows + self.drafts


def allot(shares: Sequence[Share], step_tokens: int) -> None:
    """Divide a step's rows among rounds given in fair order; sets ``rows`` and ``drafts``."""
    assert step_tokens >= MIN_STEP_TOKENS, step_tokens
    under_way = [share for share in shares if share.missing == 1]
    catching_up = [share for share in shares if share.missing > 1]
    kept = max(1, step_tokens // CATCH_UP_SHARE) if catching_up else 0
    served = under_way[: step_tokens - kept]
    for share in served:
        share.rows = 1
    _give_drafts(served, step_tokens - kept - len(served))
    left = step_tokens - sum(share.total for share in served)
    left = _give_chunks(catching_up, left)
    _give_drafts([share for share in catching_up if share.caught_up], left)


def _give_drafts(shares: Sequence[Share], left: int) -> None:
    takers = list(shares)
    while left and takers:
        takers = [share for share in takers if share.drafts < share.wanted]
        for share in takers[:left]:
            share.drafts += 1
        left -= min(left, len(takers))


def _give_chunks(shares: Sequence[Share], left: int) -> int:
    """Returns the rows nobody needed."""
    if not shares:
        return left
    quantum = max(MIN_CHUNK, left // len(shares))
    for most in (quantum, left):  # an equal part each, then what is left over in order
        for share in shares:
            given = min(most, share.missing - share.rows, left)
            share.rows += given
            left -= given
    return left


class FairQueue:
    """Waiting sessions: first in, first out for one router, and routers in turn.

    Invariant: no router has an empty line; a session waits at most once.
    """

    def __init__(self) -> None:
        self._lines: dict[str, dict[str, None]] = {}  # router id -> session ids; dicts keep their order

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __contains__(self, entry: tuple[str, str]) -> bool:
        router_id, session_id = entry
        return session_id in self._lines.get(router_id, ())

    def push(self, router_id: str, session_id: str) -> None:
        """To the end of the router's line."""
        assert (router_id, session_id) not in self, session_id
        self._lines.setdefault(router_id, {})[session_id] = None

    def remove(self, router_id: str, session_id: str) -> None:
        """Out of the line, if it is in it."""
        line = self._lines.get(router_id)
        if line is not None:
            line.pop(session_id, None)
            if not line:
                del self._lines[router_id]

    def order(self) -> list[str]:
        """Session ids in fair order: the first of each router, the second of each router, …"""
        lines = [list(line) for line in self._lines.values()]
        longest = max(map(len, lines), default=0)
        return [line[place] for place in range(longest) for line in lines if place < len(line)]

    def turn(self) -> None:
        """The router that was first goes last from now on."""
        if self._lines:
            first = next(iter(self._lines))
            self._lines[first] = self._lines.pop(first)
