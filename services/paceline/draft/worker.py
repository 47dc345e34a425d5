"""The draft worker without I/O, clock or threads: sessions, fencing, and which drafter runs what next.

    submit ──▶ waiting ──plan──▶ Batch ──run (another thread)──▶ Outcome ──complete──▶ answers

Each drafter has a lane of its own with at most one batch under way, so an n-gram lookup never waits for a model. All
methods but ``run`` are called from one thread. Times are seconds on any one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from paceline.draft.intake import Intake
from paceline.draft.lane import Answer, Batch, Lane, Outcome
from paceline.draft.sessions import HeldSession, Waiting
from paceline.drafters.interface import Drafter, SharedDrafter
from paceline.speculation.errors import InvalidRequest, Overloaded, StaleLease
from paceline.speculation.features import FeatureChunk
from paceline.speculation.messages import (
    DraftResult,
    DraftTask,
    Fence,
    Proposal,
    Resync,
    ResyncReason,
    SessionOpen,
)

RETRY_AFTER_S = 1.0


class DraftWorker:
    """Answers "K tokens for each of these sessions".

    Args:
        drafters: those offered, by their names.
        default: the drafter of sessions that name none; one of them.
        incarnation: this process's id.
        max_sessions: open at once; further ones are refused.
        max_queue: tasks waiting at once; further ones are answered empty.
        max_draft_tokens: K at most.
        session_ttl_s: a session not heard of for this long is released.

    Raises:
        InvalidRequest: the default is not offered, or two drafters have one name.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        default: str,
        *,
        incarnation: str,
        max_sessions: int = 256,
        max_queue: int = 1024,
        max_draft_tokens: int = 32,
        session_ttl_s: float = 300.0,
    ) -> None:
        self._lanes = {drafter.name: Lane(drafter) for drafter in drafters}
        self._others: dict[str, tuple[str, str]] = {}  # further names of drafters: theirs, and who drafts
        for drafter in drafters:
            if isinstance(drafter, SharedDrafter):
                self._others |= {name: (drafter.name, model_id) for name, model_id in drafter.others.items()}
        if len(self._lanes) != len(drafters) or not self._others.keys().isdisjoint(self._lanes):
            raise InvalidRequest("drafters", expected="different names", got=[drafter.name for drafter in drafters])
        self.default = default
        self._lane(default, "default_drafter")
        self.incarnation = incarnation
        self.max_sessions, self.max_queue, self.max_draft_tokens = max_sessions, max_queue, max_draft_tokens
        self._ttl_s = session_ttl_s
        self._sessions: dict[str, HeldSession] = {}
        self.intake = Intake(incarnation)

    @property
    def drafters(self) -> tuple[str, ...]:
        """Names of the drafters, those that some go by beside their own left out."""
        return tuple(self._lanes)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that sessions may ask for."""
        return (*self._lanes, *self._others)

    @property
    def sessions(self) -> int:
        """Sessions open now."""
        return len(self._sessions)

    def model_id(self, drafter: str) -> str:
        """What the draft tokens of that drafter (empty: the default) are attributed to. Raises InvalidRequest."""
        name = drafter or self.default
        return self._others[name][1] if name in self._others else self._lane(name).drafter.model_id

    def open(self, opening: SessionOpen, now: float) -> None:
        """Open a session, or open it again under a larger lease epoch. The same opening twice changes nothing.

        A numerics class is not looked at: drafts cannot change the output.

        Raises:
            InvalidRequest: nobody here has that drafter.
            StaleLease: the session is held under this epoch or a larger one.
            Overloaded: max_sessions are open.
        """
        name = opening.drafter or self.default
        lane = self._lane(name)
        held = self._sessions.get(opening.session_id)
        if held is not None and opening.lease_epoch <= held.session.lease_epoch:
            if held.opened_by(opening):
                held.seen_s = now
                return
            raise StaleLease(
                f"session {opening.session_id} is held under lease epoch {held.session.lease_epoch}, "
                f"got {opening.lease_epoch}; open it with a larger one"
            )
        if held is not None:
            self._drop(opening.session_id)
        elif len(self._sessions) >= self.max_sessions:
            raise Overloaded(f"{self.max_sessions} sessions are open", retry_after_s=RETRY_AFTER_S)
        held = self._sessions[opening.session_id] = HeldSession(opening, name, now)
        lane.changes[opening.session_id] = held.session

    def release(self, session_id: str, lease_epoch: int) -> bool:
        """Close a session; False if it is not open, or was opened again under a larger epoch."""
        held = self._sessions.get(session_id)
        if held is None or held.session.lease_epoch > lease_epoch:
            return False
        self._drop(session_id)
        return True

    def drop_router(self, router_id: str) -> int:
        """Close the sessions a router opened; how many."""
        return self._drop_all(held for held in self._sessions.values() if held.router_id == router_id)

    def expire(self, now: float) -> int:
        """Close the sessions nobody asked about within their time to live; how many."""
        return self._drop_all(held for held in self._sessions.values() if now - held.seen_s > self._ttl_s)

    def submit(self, router_id: str, task: DraftTask, now: float) -> DraftResult | None:
        """Take a task; an answer if there is one already, else it comes out of ``complete``.

        A newer round of a session replaces one that still waits, whose asker has gone on without it.
        """
        fence = task.fence
        held = self._sessions.get(fence.session_id)
        refused = self._refusal(held, fence)
        if refused is not None or held is None:
            return DraftResult(fence, refused or Resync(ResyncReason.UNKNOWN_SESSION))
        held.seen_s = now
        if held.repeats(fence):
            if held.waiting is not None:
                held.waiting.router_id = router_id
            return held.answer
        if not held.append(task):
            return DraftResult(fence, Resync(ResyncReason.PREFIX_MISMATCH, held.known_len))
        held.begin(fence)
        self.intake.asked_for(held)
        lane = self._lane(held.session.drafter)
        lane.queue.pop(fence.session_id, None)
        # The round commits one token beyond the accepted ones, so the last token left needs no draft.
        count = min(task.max_draft_tokens, self.max_draft_tokens, held.tokens_left - 1)
        if count <= 0 or self._waiting() >= self.max_queue:
            return held.finish(DraftResult(fence, _empty(lane.drafter)))
        held.waiting = lane.queue[fence.session_id] = Waiting(held, task, router_id, now, count)
        return None

    def feed(self, source: str, chunk: FeatureChunk) -> None:
        """Take context features in, from the stream of that name; ``intake.reply`` says what to tell it."""
        held = self._sessions.get(chunk.session_id)
        lane = self._lane(held.session.drafter) if held is not None else None
        taken = self.intake.take(source, chunk, held, lane.reader if lane is not None else None)
        if taken is not None and lane is not None:
            lane.features.append(taken)

    def plan(self, drafter: str, now: float) -> Batch | None:
        """All that waits for a drafter, as one batch; None if nothing does or it is at work.

        Tasks whose deadline has passed are answered empty in ``batch.expired`` and not worked on; tasks whose features
        are just coming wait for them (see ``held_until``).
        """
        lane = self._lanes[drafter]
        if lane.running is not None or not (lane.queue or lane.changes or lane.laden):
            return None
        late, live = lane.due(now)
        if not (late or live or lane.changes or lane.laden):
            return None
        closed, opened = lane.take_changes()
        asks = tuple(waiting.ask(now) for waiting in live)
        expired = tuple(
            answer for waiting in late if (answer := self._answer(waiting, _empty(lane.drafter), now, now, now))
        )
        features, lane.features = tuple(lane.features), []
        lane.running = Batch(lane.drafter, closed, opened, tuple(live), asks, expired, features, lane.reader)
        return lane.running

    def held_until(self, drafter: str) -> float | None:
        """When ``plan`` is to be called though nothing happened: tasks wait for features no longer; None if none do."""
        lane = self._lanes[drafter]
        return None if lane.running is not None else lane.held_until

    @staticmethod
    def run(batch: Batch, clock: Callable[[], float]) -> Outcome:
        """Do a batch's work; blocks, and touches nothing but the drafter. Raises what the drafter raises."""
        started = clock()
        for session_id in batch.closed:
            batch.drafter.close(session_id)
        for session in batch.opened:
            batch.drafter.open(session)
        if batch.reader is not None and batch.features:
            batch.reader.feed([taken.features for taken in batch.features])
        proposals = tuple(batch.drafter.propose(batch.asks)) if batch.asks else ()
        forgotten = batch.reader.forgotten() if batch.reader is not None else frozenset()
        return Outcome(proposals, started, clock(), forgotten)

    def complete(self, batch: Batch, outcome: Outcome | None, now: float) -> list[Answer]:
        """Turn an outcome into answers; None (the drafter failed) makes them empty.

        Sessions released or opened again meanwhile, and rounds replaced by newer ones, get none.
        """
        lane = self._lanes[batch.drafter.name]
        assert lane.running is batch, "complete() of a batch that is not under way"
        lane.running = None
        self.intake.used(batch.features)
        if outcome is None:
            fed = frozenset(taken.features.session_id for taken in batch.features)
            outcome = Outcome((_empty(batch.drafter),) * len(batch.asks), now, now, fed)
        for session_id in outcome.forgotten:
            held = self._sessions.get(session_id)
            if held is not None and self._lane(held.session.drafter) is lane:
                self.intake.forgot(held)
        answers = []
        for waiting, proposal in zip(batch.waiting, outcome.proposals, strict=True):
            assert len(proposal.tokens) <= waiting.max_tokens, (proposal, waiting)
            answer = self._answer(waiting, proposal, outcome.started_s, outcome.ended_s, now)
            if answer is not None:
                answers.append(answer)
        return answers

    def check_integrity(self) -> None:
        """Raises AssertionError, telling the terms, if the books don't add up."""
        for name, lane in self._lanes.items():
            mine = {key for key, held in self._sessions.items() if self._lane(held.session.drafter) is lane}
            opening = {key for key, session in lane.changes.items() if session is not None}
            closing = lane.changes.keys() - opening
            assert mine == (lane.told - closing) | opening, (name, mine, lane.told, lane.changes)
            running = lane.running.waiting if lane.running else ()
            for key in mine:
                waiting = self._sessions[key].waiting
                known = waiting is None or waiting is lane.queue.get(key) or waiting in running
                assert known, (name, key, waiting)
            assert lane.queue.keys() <= mine, (name, lane.queue, mine)
        assert len(self._sessions) <= self.max_sessions, (len(self._sessions), self.max_sessions)
        assert self._waiting() <= self.max_queue, (self._waiting(), self.max_queue)

    def _lane(self, name: str, field_name: str = "drafter") -> Lane:
        own, _ = self._others.get(name, (name, ""))
        lane = self._lanes.get(own)
        if lane is None:
            offered = ", ".join(self.names) or "none"
            raise InvalidRequest(field_name, expected=f"a drafter offered here ({offered})", got=name)
        return lane

    def _refusal(self, held: HeldSession | None, fence: Fence) -> Resync | None:
        if fence.incarnation != self.incarnation:
            return Resync(ResyncReason.OTHER_INCARNATION, held.known_len if held else 0)
        return held.refusal(fence) if held else None

    def _waiting(self) -> int:
        return sum(len(lane.queue) for lane in self._lanes.values())

    def _drop_all(self, chosen: Iterable[HeldSession]) -> int:
        session_ids = [held.session.session_id for held in chosen]
        for session_id in session_ids:
            self._drop(session_id)
        return len(session_ids)

    def _drop(self, session_id: str) -> None:
        held = self._sessions.pop(session_id)
        self.intake.used(self._lane(held.session.drafter).forget(session_id))

    def _answer(self, waiting: Waiting, proposal: Proposal, started: float, ended: float, now: float) -> Answer | None:
        fence = waiting.task.fence
        held = self._sessions.get(fence.session_id)
        if held is None or held.waiting is not waiting:
            return None
        timing = waiting.timing(started, ended, now)
        return waiting.router_id, held.finish(DraftResult(fence, proposal, timing))


def _empty(drafter: Drafter) -> Proposal:
    return Proposal((), drafter.name, drafter.model_id)
