"""The router's core without I/O: rounds, cohorts and pairing in one state machine.

Whoever drives it (``Router`` with asyncio, the simulation with virtual time) passes in messages and the time, then
takes the effects and does them. Handling an input never waits, and costs time proportional to the sessions in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from paceline.router.answers import Answer
from paceline.router.counters import RoundCounters
from paceline.router.effects import Effects, OpenCall
from paceline.router.pairing import DraftInfo, Registry, TargetInfo
from paceline.router.placement import Policy
from paceline.router.runner import Runner
from paceline.router.spans import NoSpans, RouterSpans
from paceline.speculation.actions import Phase
from paceline.speculation.cohorts import Cohorts
from paceline.speculation.cost import CostCurve
from paceline.speculation.errors import DeadlineExceeded, PacelineError, Unavailable
from paceline.speculation.leases import Lease, Side
from paceline.speculation.messages import DraftResult, Fence, StepReport, VerifyResult


def _no_clock() -> float:
    return 0.0


class Dispatcher:
    """All answers under way in one router.

    Args:
        policy: deadlines and defaults.
        registry: the workers; the dispatcher keeps it up to date.
        spans: telemetry.
        perf: a clock, seconds, for the router's own time; the default measures none.
    """

    def __init__(
        self,
        policy: Policy,
        registry: Registry,
        *,
        spans: RouterSpans | None = None,
        perf: Callable[[], float] = _no_clock,
    ) -> None:
        self.policy = policy
        self.registry = registry
        self._run = Runner(policy, registry, spans=spans or NoSpans(), perf=perf)
        self._places = self._run.places
        self._next_sweep: float | None = None

    @property
    def answers(self) -> Mapping[str, Answer]:
        """Answers under way, by session id."""
        return self._run.answers

    @property
    def counters(self) -> RoundCounters:
        return self._run.counters

    @property
    def cohorts(self) -> Mapping[str, Cohorts]:
        """By the verifier's address."""
        return self._run.cohorts

    def take(self) -> Effects:
        """What the inputs since the last call led to."""
        effects, self._places.effects = self._places.effects, Effects()
        return effects

    def next_deadline(self) -> float | None:
        """When ``tick`` should be called, if nothing else happens; None when nothing is under way."""
        if not self.answers:
            return None
        times = [at for cohorts in self.cohorts.values() if (at := cohorts.next_deadline()) is not None]
        return min(times, default=self._next_sweep) if self._next_sweep is None else min([*times, self._next_sweep])

    # Answers ----------------------------------------------------------------------------------------------------

    def submit(self, answer: Answer, now: float) -> None:
        """Take on an answer. Its events, or the error that ends it, come out as effects."""
        self._run.answers[answer.session_id] = answer
        self.counters.answers_started += 1
        if self._next_sweep is None:
            self._next_sweep = now + self.policy.sweep_s
        self._run.end_if(answer, self._places.find_target(answer, now), now)
        if answer.session_id in self.answers:
            self._places.find_draft(answer, now)

    def cancel(self, session_id: str, now: float, why: BaseException) -> None:
        """Nobody wants the answer any more: release it on both workers at once. ``why`` is told to telemetry only."""
        answer = self.answers.get(session_id)
        if answer is not None:
            self.counters.answers_cancelled += 1
            self._run.forget(answer, now, why)
            self._run.dispatch(now)  # its cohort may have waited for nobody else

    def charge(self, session_ids: Sequence[str], start: float) -> None:
        """Count time the driver spent on these sessions since ``start``, by the ``perf`` clock."""
        self._run.charge([answer for name in session_ids if (answer := self.answers.get(name))], start)

    # Workers ----------------------------------------------------------------------------------------------------

    def target_up(self, address: str, info: TargetInfo, router_id: str, now: float) -> None:
        """A target verifier is reachable over a new connection."""
        self.target_down(address, now)
        self.registry.target_up(address, info, router_id)
        self._run.cohorts[address] = Cohorts(
            draft_deadline_s=self.policy.draft_deadline_s, pinned=self.policy.cohorts, curve=CostCurve(info.cost_curve)
        )
        for answer in self._without(Side.TARGET):
            answer.refused.discard(address)
            self._run.end_if(answer, self._places.find_target(answer, now), now)

    def draft_up(self, address: str, info: DraftInfo, router_id: str, now: float) -> None:
        """A draft worker is reachable over a new connection."""
        self.draft_down(address, now)
        self.registry.draft_up(address, info, router_id)
        for answer in self._without(Side.DRAFT):
            self._places.find_draft(answer, now)

    def target_down(self, address: str, now: float) -> None:
        """The connection to a verifier is lost: its sessions move to another."""
        lost = self.registry.down(Side.TARGET, address, now)
        self.counters.targets_lost += bool(lost)
        for session_id in sorted(lost):
            self._run.leave_target(self.answers[session_id], now, release=False)

    def draft_down(self, address: str, now: float) -> None:
        """The connection to a draft worker is lost: its sessions go on without drafts, then with another's."""
        lost = self.registry.down(Side.DRAFT, address, now)
        self.counters.drafts_lost += bool(lost)
        self._run.leave_draft(lost, now, release=False)
        self._run.dispatch(now)

    def opened(self, call: OpenCall, incarnation: str, now: float) -> None:
        """A worker opened a session."""
        session_id, epoch = call.opening.session_id, call.opening.lease_epoch
        answer = self.answers.get(session_id)
        if answer is None or not answer.session.opened(call.side, epoch, incarnation):
            self.counters.ignored_messages += 1
            self._places.release(call.side, call.address, session_id, epoch)
        elif call.side is Side.DRAFT:
            answer.draft_failures = 0
        else:
            again = answer.started
            event = answer.start(self.registry.targets[call.address].info)
            if event is not None:
                self.counters.class_changes += again
                self._places.effects.events.append((session_id, event))
            if self._places.starves(answer):
                self._run.leave_draft([session_id], now, release=True)
            self._run.begin(answer, now)
            self._run.dispatch(now)

    def open_failed(self, call: OpenCall, error: PacelineError, now: float) -> None:
        """A worker did not open a session, or did not say so in time."""
        session_id, epoch = call.opening.session_id, call.opening.lease_epoch
        answer = self.answers.get(session_id)
        lease = answer.session.leases.get(call.side) if answer is not None else None
        if answer is not None and lease is not None and lease.epoch == epoch and not lease.is_open:
            self._not_opened(answer, lease, call.side, error, now=now)
        elif isinstance(error, Unavailable | DeadlineExceeded):  # it may have opened all the same
            self._places.release(call.side, call.address, session_id, epoch)

    def _not_opened(self, answer: Answer, lease: Lease, side: Side, error: PacelineError, *, now: float) -> None:
        if side is Side.DRAFT:
            self._places.draft_refused(answer, lease, error, now)
        else:
            self._run.end_if(answer, self._places.target_refused(answer, lease, error, now), now)

    # Rounds -----------------------------------------------------------------------------------------------------

    def on_drafts(self, address: str, results: Sequence[DraftResult], now: float, start: float | None = None) -> None:
        """A draft worker's message; the driver may have spent time on it since ``start``, by the ``perf`` clock."""
        start = self._run.perf() if start is None else start
        draft = self.registry.drafts.get(address)
        if draft is not None:
            draft.breaker.heard(now)
        touched = self._known(result.fence for result in results)
        for answer, result in zip(touched, results, strict=True):
            if answer is not None:
                self._run.on_draft(answer, result, now)
        self._run.dispatch(now)
        self._run.charge([answer for answer in touched if answer is not None], start)

    def on_verdicts(
        self,
        address: str,
        results: Sequence[VerifyResult],
        step: StepReport,
        now: float,
        start: float | None = None,
    ) -> None:
        """A verifier's message; ``start`` as in ``on_drafts``."""
        start = self._run.perf() if start is None else start
        cohorts = self.cohorts.get(address)
        if cohorts is not None and step.duration_us:
            cohorts.observe_step(step.sessions, step.tokens, step.duration_us / 1e6)
        touched = self._known(result.fence for result in results)
        for answer, result in zip(touched, results, strict=True):
            if answer is not None:
                self._run.on_verdict(answer, result, now)
        self._run.dispatch(now)
        self._run.charge([answer for answer in touched if answer is not None], start)

    def tick(self, now: float) -> None:
        """Time has passed: give up late drafts, send batches that are due, look for what is overdue."""
        start = self._run.perf()
        late = self._run.give_up_drafts(now)
        self._run.dispatch(now)
        if self._next_sweep is not None and now >= self._next_sweep:
            self._sweep(now)
            self._next_sweep = now + self.policy.sweep_s if self.answers else None
        self._run.charge(late, start)

    def _known(self, fences: Iterable[Fence]) -> list[Answer | None]:
        found = [self.answers.get(fence.session_id) for fence in fences]
        self.counters.ignored_messages += found.count(None)
        return found

    def _without(self, side: Side) -> list[Answer]:
        return [answer for answer in self.answers.values() if answer.session.leases.get(side) is None]

    # Overdue ----------------------------------------------------------------------------------------------------

    def _sweep(self, now: float) -> None:
        silent: set[str] = set()
        for answer in list(self.answers.values()):
            if answer.session_id not in self.answers:
                continue
            if now >= answer.deadline:
                self._run.end_if(answer, DeadlineExceeded("the answer was not complete by its deadline"), now)
                continue
            for side in answer.session.leases.overdue(now):
                lease = answer.session.leases.get(side)
                assert lease is not None, "overdue() names sides that are being opened"
                why = DeadlineExceeded(f"{lease.worker} did not open the session in time")
                self._not_opened(answer, lease, side, why, now=now)
            self._retry(answer, now)
            target = answer.session.leases.get(Side.TARGET)
            if answer.session.phase is Phase.VERIFYING and target and now >= answer.session.verify_overdue_at:
                silent.add(target.worker)
        for address in sorted(silent):
            self._places.effects.resets.append((Side.TARGET, address))
            self.target_down(address, now)

    def _retry(self, answer: Answer, now: float) -> None:
        leases = answer.session.leases
        if answer.session.phase is Phase.DONE:
            return
        if leases.get(Side.TARGET) is None and now >= answer.target_retry_at:
            self._run.end_if(answer, self._places.find_target(answer, now), now)
        if answer.session_id in self.answers and leases.get(Side.DRAFT) is None and now >= answer.draft_retry_at:
            self._places.find_draft(answer, now)
