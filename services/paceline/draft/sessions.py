"""One session on a draft worker: fencing, the advisory copy of its tokens, its round under way."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from paceline.drafters.interface import Ask, DraftSession
from paceline.speculation.digest import PrefixDigest
from paceline.speculation.messages import DraftResult, DraftTask, Fence, Resync, ResyncReason, SessionOpen, Timing

MICRO = 1e6


@dataclass(slots=True, eq=False)
class Waiting:
    """A task that waits for its drafter, or is being worked on."""

    held: HeldSession
    task: DraftTask
    router_id: str  # whom to answer: whoever asked last
    arrived_s: float
    max_tokens: int  # K after the worker's and the session's limits

    @property
    def deadline_s(self) -> float:
        """When the answer loses its use, on the clock that ``arrived_s`` was read from."""
        return self.arrived_s + self.task.deadline_us / MICRO if self.task.deadline_us else math.inf

    def ask(self, now: float) -> Ask:
        """What its drafter is asked."""
        fence, task = self.task.fence, self.task
        token_s, row_s = task.token_us / MICRO, task.row_us / MICRO
        return Ask(fence.session_id, fence.base_len, self.max_tokens, self.deadline_s - now, token_s, row_s)

    def timing(self, started: float, ended: float, now: float) -> Timing:
        """Where its time went, if it was worked on from ``started`` to ``ended`` and is answered now."""
        return Timing(_micros(started - self.arrived_s), _micros(ended - started), _micros(now - self.arrived_s))


@dataclass(slots=True)
class Fed:
    """How far a session's context features have come."""

    count: int = 0  # leading positions taken in
    source: str = ""  # the stream they come by
    told: int = -1  # the position last asked for
    patient: bool = True  # whether asks wait for the last of them: not after one waited in vain
    forgotten: int = 0  # how often its drafter had no room for them any more
    silent: int = 0  # asks to come before they are wanted again


class HeldSession:
    """A session under one lease.

    Invariants: ``fence`` is that of the last round taken, None before the first; of ``waiting`` and ``answer`` exactly
    one is set after a round was taken, and none before.
    """

    def __init__(self, opening: SessionOpen, drafter: str, now_s: float) -> None:
        self.session = DraftSession.opened(opening, drafter)
        self.router_id = opening.router_id
        self.seen_s = now_s
        self.fence: Fence | None = None
        self.waiting: Waiting | None = None
        self.answer: DraftResult | None = None
        self.fed = Fed()
        self._opening = replace(opening, tokens=())
        self._opened = (len(opening.tokens), self.session.digest.value)

    @property
    def known_len(self) -> int:
        """Tokens held."""
        return len(self.session.tokens)

    @property
    def tokens_left(self) -> int:
        """Tokens the target may still commit."""
        return self.session.prompt_len + self.session.sampling.max_tokens - self.known_len

    def opened_by(self, opening: SessionOpen) -> bool:
        """Whether this is the very opening that made the session: a repeated call, to be answered as before."""
        same = replace(opening, tokens=()) == self._opening
        return same and (len(opening.tokens), PrefixDigest(opening.tokens).value) == self._opened

    def refusal(self, fence: Fence) -> Resync | None:
        """Why a round of this session cannot be taken, as far as its fence tells; None if it can."""
        if fence.lease_epoch < self.session.lease_epoch:
            return Resync(ResyncReason.STALE_LEASE, self.known_len)
        if fence.lease_epoch > self.session.lease_epoch:  # its opening never came here
            return Resync(ResyncReason.UNKNOWN_SESSION)
        if self.fence is None or fence.round_id > self.fence.round_id:
            return None
        # An equal id over another prefix is a used one.
        return None if fence == self.fence else Resync(ResyncReason.OLD_ROUND, self.known_len)

    def repeats(self, fence: Fence) -> bool:
        """Whether this round was taken already."""
        return fence == self.fence

    def append(self, task: DraftTask) -> bool:
        """Take in the task's committed tokens; False, and nothing changed, if they don't lead to the task's prefix."""
        known, base_len = self.known_len, task.fence.base_len
        overlap = known - task.append_from
        ends_at_base = task.append_from + len(task.appended) == base_len
        if overlap < 0 or base_len < known or not (ends_at_base or (base_len == known and not task.appended)):
            return False
        tokens = self.session.tokens
        if tuple(tokens[task.append_from : task.append_from + len(task.appended)]) != task.appended[:overlap]:
            return False
        new = task.appended[overlap:]
        if len(new) > self.tokens_left:
            return False
        self.session.digest.extend(new)
        if self.session.digest.value != task.fence.prefix_digest:
            self.session.digest = PrefixDigest(tokens)  # a digest cannot be cut back; this is rare
            return False
        tokens.extend(new)
        return True

    def begin(self, fence: Fence) -> None:
        """Take a round; an older one that nobody answered yet is given up."""
        self.fence, self.waiting, self.answer = fence, None, None

    def finish(self, answer: DraftResult) -> DraftResult:
        """Answer the round and keep the answer for repetitions."""
        self.waiting, self.answer = None, answer
        return answer


def _micros(seconds: float) -> int:
    return max(0, round(seconds * MICRO))
