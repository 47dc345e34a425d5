"""The verifier: who may take a round, what the next step is, what it commits. No I/O, no clock, no threads.

    open ─▶ session ─▶ submit(round) ─▶ plan ─▶ (the engine runs the step) ─▶ complete ─▶ verdicts
                 ▲          │ repeat, resync: answered at once     │
                 └──────────┴── release, drop_router, expire ◀─────┘ fail: the step's sessions have to be re-opened

Between ``plan`` and ``complete`` or ``fail`` a step is under way and everything else may be called: the engine is then
asked to admit sessions to its KV space and to free that of sessions outside the step (see ``sessions``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from paceline.engine.interface import EngineInfo, SliceResult, StepPlan, StepResult
from paceline.speculation import ledger
from paceline.speculation.messages import (
    Fence,
    Resync,
    ResyncReason,
    SessionOpen,
    Verdict,
    VerifyResult,
    VerifyTask,
)
from paceline.speculation.shaping import GrammarState
from paceline.target.answer import Detokenizer
from paceline.target.feeds import Feeds
from paceline.target.schedule import FairQueue, Share, allot
from paceline.target.session import Round, Session
from paceline.target.sessions import KvSpace, Limits, SessionTable
from paceline.target.spans import RoundSpan


class Served(NamedTuple):
    """One round's part in a step that is over."""

    router_id: str
    result: VerifyResult | None  # None while it is catching up, and when its session is gone
    span: RoundSpan


class _Seat(NamedTuple):
    """A round in the step under way."""

    session: Session
    round: Round
    share: Share


class Verifier:
    """Owns all sessions of one target.

    Args:
        kv: where KV space is reserved and freed.
        detokenizer: makes a fresh one.
    """

    def __init__(
        self, kv: KvSpace, info: EngineInfo, *, limits: Limits, incarnation: str, detokenizer: Callable[[], Detokenizer]
    ) -> None:
        self.info, self.limits, self.incarnation = info, limits, incarnation
        self._table = SessionTable(kv, info, limits, detokenizer)
        self._queue = FairQueue()
        self.feeds = Feeds(info.features, info.feature_dtype)
        self._plan: StepPlan | None = None  # the step under way
        self._seats: dict[str, _Seat] = {}  # who is in it, in the plan's order
        self._steps = 0

    @property
    def sessions(self) -> int:
        """Sessions held."""
        return len(self._table)

    @property
    def waiting(self) -> int:
        """Rounds waiting for a step."""
        return len(self._queue)

    def tokens(self, session_id: str) -> tuple[int, ...] | None:
        """A session's prompt and committed tokens; None if it isn't held."""
        session = self._table.get(session_id)
        return tuple(session.ledger.tokens) if session else None

    def open(self, opening: SessionOpen, now: float, grammar: GrammarState | None = None) -> None:
        """Take a session on, or over from an older lease. See SessionTable.open for what is kept and raised."""
        held = self._table.get(opening.session_id)
        replaced = self._table.open(opening, now, grammar)
        session = self._table.get(opening.session_id)
        if session is not None and session is not held:
            self.feeds.drop(opening.session_id)
            self.feeds.ready(opening.session_id, session.kv_len)
        if replaced is not None:
            self._queue.remove(replaced.router_id, replaced.session_id)

    def release(self, session_id: str, lease_epoch: int) -> bool:
        """Forget a session, unless it is held under a newer lease epoch; False if there was nothing to release."""
        session = self._table.get(session_id)
        if session is None or lease_epoch < session.ledger.lease_epoch:
            return False
        self._drop([session])
        return True

    def drop_router(self, router_id: str) -> int:
        """Release every session of a router; returns how many."""
        return self._drop([session for session in self._table if session.router_id == router_id])

    def expire(self, now: float) -> int:
        """Release sessions nobody asked about for the time to live; returns how many."""
        oldest = now - self.limits.session_ttl_s
        return self._drop([s for s in self._table if s.round is None and s.touched_s < oldest])

    def submit(self, router_id: str, task: VerifyTask, now: float) -> VerifyResult | None:
        """Take a round: an answer at once, or None and the answer comes out of a step.

        A repetition of a round that is waiting or in a step has no answer of its own: the one under way serves both. A
        newer round replaces one that nothing was sampled for yet. A round after the answer's end gets an empty verdict
        with the finish.
        """
        fence = task.fence
        session = self._table.get(fence.session_id)
        if session is None:
            return VerifyResult(fence, ledger.unknown(fence, self.incarnation))
        if router_id != session.router_id:  # whoever opened the session under this lease is another
            return _resync(session, fence, ResyncReason.STALE_LEASE)
        session.touched_s = now
        admission = session.ledger.admit(fence, self.incarnation)
        if isinstance(admission, Resync):
            return VerifyResult(fence, admission)
        if isinstance(admission, ledger.Repeat):
            return VerifyResult(fence, admission.verdict)
        if session.answer.finish is not None:
            verdict = Verdict((), (), 0, 0, finish=session.answer.finish, verifier_model_id=self.info.model_id)
            return VerifyResult(fence, verdict)
        self.feeds.point(fence.session_id, task.feed, later=task.features_later)
        return self._enqueue(session, task, now)

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None if no round waits. It must be completed or failed before the next one."""
        assert self._plan is None, f"step {self._plan.step_id} is under way"
        seats = [self._seat(session_id) for session_id in self._queue.order()]
        if not seats:
            return None
        allot([seat.share for seat in seats], self.limits.step_tokens)
        self._queue.turn()
        self._seats = {seat.session.session_id: seat for seat in seats if seat.share.total}
        for session_id, seat in self._seats.items():
            self._queue.remove(seat.session.router_id, session_id)
            if seat.round.started_s is None:
                seat.round.started_s = now
        self._table.pin(self._seats.keys())
        self._steps += 1
        slices = tuple(seat.session.slice(seat.share, self.info.vocab_size) for seat in self._seats.values())
        self._plan = StepPlan(self._steps, slices)
        return self._plan

    def complete(self, plan: StepPlan, result: StepResult, now: float) -> list[Served]:
        """Commit what a step sampled. Sessions released or taken over meanwhile get nothing of it."""
        seats = self._end_step(plan)
        assert len(result.samples) == len(seats), (len(result.samples), len(seats))
        served = []
        for seat, drawn in zip(seats, result.by_slice(), strict=True):
            outcome: Verdict | Resync | None = None
            if self._is_current(seat):
                seat.round.step_s += result.duration_s
                outcome = self._advance(seat, drawn, now)
            answer = VerifyResult(seat.round.fence, outcome, seat.round.timing(now)) if outcome else None
            verdict = outcome if isinstance(outcome, Verdict) else None
            served.append(Served(seat.session.router_id, answer, seat.session.span(seat.round, seat.share, verdict)))
        return served

    def fail(self, plan: StepPlan, now: float) -> list[Served]:
        """A step broke: nobody knows what its sessions' KV state holds, so they are dropped, to be opened again."""
        served = []
        for seat in self._end_step(plan, broken=True):
            answer = None
            if self._is_current(seat):
                self._drop([seat.session], broken=True)
                answer = VerifyResult(seat.round.fence, Resync(ResyncReason.UNKNOWN_SESSION), seat.round.timing(now))
            served.append(Served(seat.session.router_id, answer, seat.session.span(seat.round, seat.share, None)))
        return served

    def check_integrity(self) -> None:
        """Assert the invariants, printing all terms."""
        self._table.check_integrity()
        self.feeds.check_integrity()
        terms = f"sessions {self.sessions}, waiting {self.waiting}, seats {sorted(self._seats)}"
        assert bool(self._seats) == (self._plan is not None), terms
        waiting = 0
        for session in self._table:
            seated = self._is_seated(session)
            queued = (session.router_id, session.session_id) in self._queue
            has_round = session.round is not None
            assert queued + seated == has_round, f"{session.session_id}: {queued=} {seated=} {has_round=}; {terms}"
            waiting += queued
        assert waiting == len(self._queue), f"{waiting} sessions wait; {terms}"

    def _seat(self, session_id: str) -> _Seat:
        session = self._table.get(session_id)
        assert session is not None, session_id
        assert session.round is not None, session_id
        return _Seat(session, session.round, Share(session.missing, len(session.round.drafts)))

    def _enqueue(self, session: Session, task: VerifyTask, now: float) -> VerifyResult | None:
        fence, under_way = task.fence, session.round
        if under_way is not None:
            if fence == under_way.fence:
                return None
            if fence.round_id <= under_way.fence.round_id:
                return _resync(session, fence, ResyncReason.OLD_ROUND)
            if self._is_seated(session) and self._seats[session.session_id].share.caught_up:
                # The step will commit something, so this round's prefix is wrong already.
                return _resync(session, fence, ResyncReason.PREFIX_MISMATCH)
        drafts = session.usable(task.proposal, most=self.limits.max_draft_tokens, vocab_size=self.info.vocab_size)
        forced = () if drafts else session.forced(most=self.limits.max_draft_tokens)
        session.round = Round(task, drafts or forced, arrived_s=now, own=bool(forced))
        if under_way is None:
            self._queue.push(session.router_id, session.session_id)
        return None

    def _advance(self, seat: _Seat, drawn: SliceResult, now: float) -> Verdict | Resync | None:
        session, share = seat.session, seat.share
        session.touched_s = now
        if not share.caught_up:
            session.catch_up(share.rows, drawn.scores)
            self._table.publish(session)
            self.feeds.ready(session.session_id, session.kv_len)
            self._queue.push(session.router_id, session.session_id)
            return None
        session.round = None
        outcome = session.commit(seat.round, share.drafts, drawn, self.info.model_id)
        self._table.publish(session)
        if session.answer.finish is None:
            self.feeds.ready(session.session_id, session.kv_len)
        else:  # nobody drafts for it any more
            self.feeds.drop(session.session_id)
        return outcome

    def _end_step(self, plan: StepPlan, *, broken: bool = False) -> list[_Seat]:
        assert plan is self._plan, f"step {plan.step_id} is not the one under way"
        seats = list(self._seats.values())
        self._plan = None
        self._seats = {}
        self._table.unpin(broken=broken)
        return seats

    def _is_current(self, seat: _Seat) -> bool:
        return self._table.get(seat.session.session_id) is seat.session

    def _is_seated(self, session: Session) -> bool:
        seat = self._seats.get(session.session_id)
        return seat is not None and seat.session is session

    def _drop(self, sessions: Sequence[Session], *, broken: bool = False) -> int:
        for session in sessions:
            self._queue.remove(session.router_id, session.session_id)
            self.feeds.drop(session.session_id)
            self._table.drop(session, broken=broken)
        return len(sessions)


def _resync(session: Session, fence: Fence, reason: ResyncReason) -> VerifyResult:
    return VerifyResult(fence, Resync(reason, len(session.ledger.tokens)))
