"""A session as its verifier holds it, and which rounds it may take: the fencing of DESIGN.md section 5.

Fence ──admit──▶ Fresh            run the round
              ├▶ Repeat(verdict)  the round ran already: the same answer again
              └▶ Resync(reason)   sender and worker disagree about the session: it has to be opened again
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.speculation.digest import PrefixDigest
from paceline.speculation.messages import Fence, Resync, ResyncReason, SessionOpen, Verdict


@dataclass(frozen=True, slots=True)
class Fresh:
    """The round continues exactly what the worker holds."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """The round was answered before."""

    verdict: Verdict


FRESH = Fresh()


class SessionLedger:
    """The committed tokens of one lease of a session, and its last verdict.

    Invariant: ``tokens`` starts with ``opening.tokens`` and grows only by ``commit``; ``digest`` is theirs.
    """

    __slots__ = ("_digest", "_last", "opening", "tokens")

    def __init__(self, opening: SessionOpen) -> None:
        assert 0 < opening.prompt_len <= len(opening.tokens), opening
        self.opening = opening
        self.tokens = list(opening.tokens)
        self._digest = PrefixDigest(opening.tokens)
        self._last: tuple[Fence, Verdict] | None = None

    @property
    def session_id(self) -> str:
        return self.opening.session_id

    @property
    def lease_epoch(self) -> int:
        return self.opening.lease_epoch

    @property
    def committed(self) -> int:
        """Output tokens so far, those it was opened with included."""
        return len(self.tokens) - self.opening.prompt_len

    @property
    def digest(self) -> bytes:
        """PrefixDigest over ``tokens``."""
        return self._digest.value

    @property
    def last_round_id(self) -> int | None:
        """The last round committed in this lease."""
        return self._last[0].round_id if self._last else None

    def admit(self, fence: Fence, incarnation: str) -> Fresh | Repeat | Resync:
        """Whether a round may run. ``incarnation`` is the worker's own."""
        assert fence.session_id == self.session_id, (fence, self.session_id)
        if fence.lease_epoch > self.lease_epoch and fence.incarnation == incarnation:
            return Resync(ResyncReason.UNKNOWN_SESSION)  # a lease that was never opened here, or got lost
        if self._last is not None and fence == self._last[0]:
            return Repeat(self._last[1])
        reason = self._mismatch(fence, incarnation)
        return FRESH if reason is None else Resync(reason, len(self.tokens))

    def commit(self, fence: Fence, verdict: Verdict) -> None:
        """Append what a fresh round committed."""
        assert fence.base_len == len(self.tokens), (fence, len(self.tokens))
        assert self._last is None or fence.round_id > self._last[0].round_id, (fence, self._last)
        self.tokens += verdict.tokens
        self._digest.extend(verdict.tokens)
        self._last = (fence, verdict)

    def _mismatch(self, fence: Fence, incarnation: str) -> ResyncReason | None:
        last = self.last_round_id
        if fence.incarnation != incarnation:
            return ResyncReason.OTHER_INCARNATION
        if fence.lease_epoch < self.lease_epoch:
            return ResyncReason.STALE_LEASE
        if last is not None and fence.round_id <= last:  # an equal id over another prefix is a used one
            return ResyncReason.OLD_ROUND
        if fence.base_len != len(self.tokens) or fence.prefix_digest != self.digest:
            return ResyncReason.PREFIX_MISMATCH
        return None


def unknown(fence: Fence, incarnation: str) -> Resync:
    """The answer to a round of a session the worker doesn't hold."""
    other = fence.incarnation != incarnation
    return Resync(ResyncReason.OTHER_INCARNATION if other else ResyncReason.UNKNOWN_SESSION)
