"""Where answers live: opening sessions on workers, moving them when a worker is lost, giving them back.

target:  no verifier ──open──▶ opening ──▶ held ──lost, resync──▶ no verifier … up to grace_s, then Unavailable
draft:   the same, in the background; rounds go on without drafts meanwhile
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.router.answers import Answer
from paceline.router.counters import RoundCounters
from paceline.router.effects import Effects, OpenCall, ReleaseCall
from paceline.router.pairing import Registry, TargetInfo
from paceline.speculation.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PacelineError,
    StaleLease,
    Unavailable,
)
from paceline.speculation.features import Feed
from paceline.speculation.leases import Lease, Side
from paceline.speculation.params import SpeculationMode
from paceline.speculation.payoff import DrafterRecord, Payoff
from paceline.speculation.rounds import MAX_STRIKES

FIRST_RETRY_S = 0.05
MAX_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Policy:
    """The dispatcher's settings; times in seconds."""

    draft_deadline_s: float = 0.1
    verify_deadline_s: float = 30.0
    open_deadline_s: float = 10.0
    grace_s: float = 4.0  # how long an answer under way waits for a verifier to come (back)
    retry_max_s: float = 2.0
    default_k: int = 8
    default_drafter: str = ""
    cohorts: int = 0

    @property
    def sweep_s(self) -> float:
        """How often overdue openings, verdicts and requests are looked for; their deadlines are this coarse."""
        return min(0.05, self.draft_deadline_s)


class Placement:
    """Gives answers their verifier and draft worker, and takes them away. Effects are written to ``effects``."""

    def __init__(self, registry: Registry, policy: Policy, counters: RoundCounters) -> None:
        self.registry = registry
        self.policy = policy
        self.effects = Effects()
        self._records: dict[tuple[str, str], DrafterRecord] = {}  # by target model and drafter
        self._counters = counters

    # Targets ----------------------------------------------------------------------------------------------------

    def find_target(self, answer: Answer, now: float) -> PacelineError | None:
        """Open the session on the best verifier, if there is one. Returns why the answer must end, if it must."""
        session = answer.session
        if session.strikes >= MAX_STRIKES:
            return answer.refusal or Unavailable(f"no verifier took the session in {MAX_STRIKES} attempts")
        target = self.registry.place_target(
            answer.model.model_id, answer.numerics_class, session.tokens, avoid=answer.refused
        )
        if target is None:
            return self._without_target(answer, now)
        lease_deadline = now + self.policy.open_deadline_s
        opening = session.open(
            Side.TARGET,
            target.address,
            lease_deadline,
            router_id=target.router_id,
            trace=answer.span.trace(),
            drafter="",
            numerics=target.info.numerics_class,
        )
        target.sessions.add(answer.session_id)
        self._counters.target_opens += 1
        self.effects.opens.append(OpenCall(Side.TARGET, target.address, opening, self.policy.open_deadline_s))
        return None

    def _without_target(self, answer: Answer, now: float) -> PacelineError | None:
        why = answer.refusal or Unavailable(f"no verifier of model {answer.model.model_id!r} has room just now")
        if answer.homeless_since is None:
            answer.homeless_since = now
        if self._better_refused(answer) or now - answer.homeless_since >= self.policy.grace_s:
            return why
        answer.refused.clear()
        answer.target_retry_at = now + self._pause(answer.session.strikes)
        return None

    @staticmethod
    def _better_refused(answer: Answer) -> bool:
        """Whether the caller is better told at once: nothing is lost yet, and nobody is there, or all are full."""
        begun = answer.started or answer.session.spec.lease_epoch > 0
        return not begun and (answer.refusal is None or isinstance(answer.refusal, Overloaded))

    def target_refused(self, answer: Answer, lease: Lease, error: PacelineError, now: float) -> PacelineError | None:
        """A verifier did not open the session. Returns why the answer must end, if it must."""
        self.drop(answer, Side.TARGET, now, release=not isinstance(error, InvalidRequest | Overloaded | StaleLease))
        answer.refusal = error
        if isinstance(error, InvalidRequest) or (isinstance(error, StaleLease) and answer.started):
            return error
        if not isinstance(error, StaleLease):  # a resumed session only has to reach a larger epoch
            answer.refused.add(lease.worker)
        return self.find_target(answer, now)

    # Draft workers ----------------------------------------------------------------------------------------------

    def find_draft(self, answer: Answer, now: float) -> None:
        """Open the session on a draft worker, if speculation is wanted and there is one; else look again later."""
        wanted = answer.request.speculation
        if wanted.mode is SpeculationMode.OFF or wanted.max_draft_tokens == 0:
            answer.draft_retry_at = float("inf")
            return
        found = self.registry.place_draft(self._model(answer), answer.drafter, now)
        if found is None:
            answer.draft_retry_at = now + self.policy.retry_max_s
            return
        draft, drafter = found
        record = self._records.setdefault((answer.model.model_id, drafter.name), DrafterRecord())
        if answer.session.payoff is None or answer.session.payoff.record is not record:
            answer.session.payoff = Payoff(record)
        opening = answer.session.open(
            Side.DRAFT,
            draft.address,
            now + self.policy.open_deadline_s,
            router_id=draft.router_id,
            trace=answer.span.trace(),
            drafter=drafter.name,
            numerics="",
        )
        lease = answer.session.leases.get(Side.DRAFT)
        assert lease is not None, "it was just taken"
        if drafter.needs_features:
            lease.feed = Feed(draft.address, draft.info.incarnation, lease.epoch, drafter.projector)
        draft.sessions.add(answer.session_id)
        self._counters.draft_opens += 1
        self.effects.opens.append(OpenCall(Side.DRAFT, draft.address, opening, self.policy.open_deadline_s))

    def starves(self, answer: Answer) -> bool:
        """Whether the drafter needs features that the verifier does not keep."""
        feed = answer.session.leases.feed
        return feed is not None and feed.projector not in self._model(answer).projectors

    def _model(self, answer: Answer) -> TargetInfo:
        """Of the verifier that holds the session or is opening it; else of one it could be on."""
        lease = answer.session.leases.get(Side.TARGET)
        target = self.registry.targets.get(lease.worker) if lease is not None else None
        return answer.model if target is None else target.info

    def draft_refused(self, answer: Answer, lease: Lease, error: PacelineError, now: float) -> None:
        """A draft worker did not open the session: another try later."""
        self.drop(answer, Side.DRAFT, now, release=isinstance(error, Unavailable | DeadlineExceeded))
        draft = self.registry.drafts.get(lease.worker)
        if draft is not None and isinstance(error, Unavailable | DeadlineExceeded):
            draft.breaker.fail(now)
        answer.draft_retry_at = now + self._pause(answer.draft_failures)
        answer.draft_failures += 1

    # Both -------------------------------------------------------------------------------------------------------

    def drop(self, answer: Answer, side: Side, now: float, *, release: bool) -> Lease | None:
        """Take a session from a worker; ``release`` tells the worker. Returns the lease it had."""
        lease = answer.session.lose(side, now)
        if lease is None:
            return None
        if side is Side.TARGET:
            target = self.registry.targets.get(lease.worker)
            if target is not None:
                target.sessions.discard(answer.session_id)
        else:
            draft = self.registry.drafts.get(lease.worker)
            if draft is not None:
                draft.sessions.discard(answer.session_id)
                draft.breaker.forget_probe(answer.session_id)
        if release:
            self.release(side, lease.worker, answer.session_id, lease.epoch)
        return lease

    def release(self, side: Side, address: str, session_id: str, epoch: int) -> None:
        """Tell a worker that a lease is over."""
        self.effects.releases.append(ReleaseCall(side, address, session_id, epoch))

    def _pause(self, failures: int) -> float:
        return min(self.policy.retry_max_s, FIRST_RETRY_S * 2.0 ** min(failures, MAX_DOUBLINGS))
