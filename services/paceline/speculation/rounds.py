"""The rounds of one session as a state machine: messages and the time go in, actions come out.

          lease opened            begin                 proposal, or the deadline
 OPENING ─────────────▶ NEEDS_DRAFT ──▶ DRAFTING ─────────────────────────▶ READY
    ▲                       ▲   └────────── no draft wanted ──────────────────▲ │
    │ resync, verifier lost │ commit                                            │ dispatch
    └───────────────────────┴────────────────────── VERIFYING ◀─────────────────┘
                                                        └─ finish ─▶ DONE

What a late, repeated or foreign message may do is count itself: the output changes only by a verdict whose fence
equals the one of the round under way. Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Callable

from paceline.speculation.actions import (
    Action,
    Answered,
    AskDraft,
    AskVerify,
    Commit,
    Failed,
    Finished,
    Phase,
    Reopen,
    Round,
    SessionSpec,
)
from paceline.speculation.digest import PrefixDigest
from paceline.speculation.errors import PacelineError, StaleLease, dead_end
from paceline.speculation.leases import Lease, Leases, Side
from paceline.speculation.messages import (
    EMPTY_PROPOSAL,
    DraftResult,
    DraftTask,
    Fence,
    Proposal,
    Resync,
    ResyncReason,
    RoundStats,
    SessionOpen,
    Timing,
    Trace,
    Verdict,
    VerifyResult,
    VerifyTask,
)
from paceline.speculation.params import SpeculationMode
from paceline.speculation.patience import Patience
from paceline.speculation.payoff import Load, Payoff

WORKER_SHARE = 0.8  # of the draft deadline: a drafter that uses all it is given must still be in time
MAX_STRIKES = 8  # openings on targets without a committed token in between, before the session is given up


class Session:
    """One sequence being generated, seen from the router.

    Args:
        spec: what fixes its output.
        draft_deadline_s: how long a round waits for its draft.
        verify_deadline_s: how long a verdict may take before the verifier counts as lost.

    Invariant: ``tokens`` is the prompt and every committed token; ``digest`` covers exactly these.
    """

    def __init__(self, spec: SessionSpec, *, draft_deadline_s: float, verify_deadline_s: float) -> None:
        self.spec = spec
        self.tokens = [*spec.prompt, *spec.committed]
        self.digest = PrefixDigest(self.tokens)
        self.leases = Leases(spec.lease_epoch)
        self.stats = RoundStats()
        self.phase = Phase.OPENING
        self.ignored = 0  # late, repeated or foreign messages
        self.strikes = 0
        self.rounds_on_target = 0  # committed under the present target lease
        self._draft_deadline_s = draft_deadline_s
        self._verify_deadline_s = verify_deadline_s
        self._round = Round(0, 0.0)
        self.patience = Patience(draft_deadline_s)
        self.payoff: Payoff | None = None  # of its drafter, once it has one
        self._verify: Fence | None = None  # of the verify task under way

    # Facts ------------------------------------------------------------------------------------------------------

    @property
    def output_len(self) -> int:
        return len(self.tokens) - len(self.spec.prompt)

    @property
    def round_id(self) -> int:
        return self._round.round_id

    @property
    def draft_deadline(self) -> float:
        """When the draft asked for is no longer waited for."""
        return self._round.began + self._draft_deadline_s

    @property
    def verify_overdue_at(self) -> float:
        """When the verdict under way makes its verifier count as lost."""
        return self._round.sent + self._verify_deadline_s

    def draft_tokens(self, now: float, default_k: int, limit: int, load: Load | None = None) -> int:
        """How many tokens to ask for in the next round; 0 for none. ``limit``: what workers and context have room for.

        ``auto`` asks for what pays under ``load``, and for nothing in the first round of a target lease: that step is
        a prefill, which a draft could only delay. A round commits one token more than it verifies.
        """
        wanted = self.spec.speculation
        if wanted.mode is SpeculationMode.OFF or not self.patience.may_ask(now):
            return 0
        if wanted.mode is SpeculationMode.AUTO and self.rounds_on_target == 0:
            return 0
        k = default_k if wanted.max_draft_tokens is None else wanted.max_draft_tokens
        k = max(0, min(k, limit, self.spec.sampling.max_tokens - self.output_len - 1))
        if self.payoff is None or load is None or wanted.mode is SpeculationMode.FIXED:
            return k
        return self.payoff.choose(k, load)

    # Leases -----------------------------------------------------------------------------------------------------

    def open(
        self, side: Side, worker: str, deadline: float, *, router_id: str, trace: Trace, drafter: str, numerics: str
    ) -> SessionOpen:
        """Start opening a side on a worker, under a new epoch. A target's opening abandons the round under way."""
        if side is Side.TARGET:
            self.strikes += 1
            self.rounds_on_target = 0
            self._abandon()
        else:
            self.patience.forget()
        lease = self.leases.take(side, worker, deadline, len(self.tokens))
        return self.spec.opening(
            lease, side, self.tokens, router_id=router_id, drafter=drafter, numerics_class=numerics, trace=trace
        )

    def opened(self, side: Side, epoch: int, incarnation: str) -> bool:
        """A worker opened the session; False if that opening is no longer wanted."""
        if self.phase is Phase.DONE or not self.leases.confirm(side, epoch, incarnation):
            self.ignored += 1
            return False
        if side is Side.TARGET:
            self.phase = Phase.NEEDS_DRAFT
        return True

    def lose(self, side: Side, now: float) -> Lease | None:
        """The worker of a side is lost, or left. Without a draft worker the round goes on at once, without drafts."""
        lease = self.leases.drop(side)
        if side is Side.TARGET:
            self._abandon()
        elif self.phase is Phase.DRAFTING:
            self._make_ready(now, EMPTY_PROPOSAL)
        return lease

    def _abandon(self) -> None:
        if self.phase is not Phase.DONE:
            self.phase = Phase.OPENING
        self._verify = None

    # Rounds -----------------------------------------------------------------------------------------------------

    def begin(self, now: float, k: int, trace: Callable[[int], Trace], *, wait: bool = True) -> list[Action]:
        """Begin a round: ask for at most ``k`` draft tokens, or be ready at once.

        After a missed deadline, or without ``wait``, the question is a probe: the round goes on without its answer,
        and an answer within the deadline makes later rounds wait again. So a slow draft worker costs a session one
        deadline, not one every so often. ``trace`` gives the trace context of a round id.
        """
        assert self.phase is Phase.NEEDS_DRAFT, self.phase
        round_id = self._round.round_id + 1
        self._round = Round(round_id, now, trace(round_id))
        if k == 0 or (lease := self.leases.opened(Side.DRAFT)) is None:
            self._make_ready(now, EMPTY_PROPOSAL)
            return []
        fence = self._fence(lease)
        self.patience.ask(fence, now)
        if wait and self.patience.waits:
            self.phase, self._round.asked = Phase.DRAFTING, k
        else:
            self._make_ready(now, EMPTY_PROPOSAL)
        task = DraftTask(
            fence=fence,
            appended=tuple(self.tokens[lease.held_len :]),
            append_from=lease.held_len,
            max_draft_tokens=k,
            deadline_us=int(self._draft_deadline_s * WORKER_SHARE * 1e6),
            trace=self._round.trace,
        )
        return [AskDraft(lease.worker, task, self.draft_deadline)]

    def on_draft(self, result: DraftResult, now: float) -> list[Action]:
        """A draft worker answered. Only the answer to the last question asked under the present lease counts."""
        lease = self.leases.opened(Side.DRAFT)
        if lease is None or not self.patience.expects(result.fence) or result.fence.lease_epoch != lease.epoch:
            self.ignored += 1
            return []
        waited, took_s = self.phase is Phase.DRAFTING, self.patience.answered(now)
        answered = Answered(lease.worker, took_s, waited)
        if isinstance(result.outcome, Resync):
            if waited:
                self._make_ready(now, EMPTY_PROPOSAL)
            return [answered, Reopen(Side.DRAFT, lease.worker)]
        lease.held_len = max(lease.held_len, result.fence.base_len)
        if waited:
            self._round.network_us += _network_us(took_s, result.timing)
            self._make_ready(now, result.outcome)
        return [answered]

    def expire_draft(self, now: float) -> bool:
        """Go on without the draft if its deadline has passed; True if it was missed by this call."""
        if self.phase is not Phase.DRAFTING or now < self.draft_deadline:
            return False
        self._round.missed = True
        self.patience.missed(now)
        self._make_ready(now, EMPTY_PROPOSAL)
        return True

    def dispatch(self, now: float) -> AskVerify:
        """Send the round, with what was drafted, to the target."""
        lease = self.leases.opened(Side.TARGET)
        assert self.phase is Phase.READY, self.phase
        assert lease is not None, "a session is ready only while its target holds it"
        self.phase, self._round.sent = Phase.VERIFYING, now
        self._verify = self._fence(lease)
        rests = self.payoff is not None and self.payoff.rests
        task = VerifyTask(self._verify, self._round.proposal, self._round.trace, self.leases.feed, rests)
        return AskVerify(lease.worker, task)

    def on_verdict(self, result: VerifyResult, now: float) -> list[Action]:
        """A target answered. Only the answer to the round under way counts."""
        if self.phase is not Phase.VERIFYING or result.fence != self._verify:
            self.ignored += 1
            return []
        lease = self.leases.get(Side.TARGET)
        assert lease is not None, "a session is verified only while it has a target"
        if isinstance(result.outcome, Resync):
            if result.outcome.reason is ResyncReason.STALE_LEASE:
                return self.fail(StaleLease(f"session {self.spec.session_id} goes on under a newer lease"))
            if result.outcome.reason is ResyncReason.DEAD_END:
                return self.fail(dead_end(self.output_len))
            return self._again(lease)
        if not result.outcome.tokens and result.outcome.finish is None:
            return self._again(lease)  # a target that commits nothing is not to be asked for ever
        return self._commit(result.outcome, result.timing, now)

    def fail(self, error: PacelineError) -> list[Action]:
        """End the session with an error."""
        self.phase = Phase.DONE
        return [Failed(error)]

    def _again(self, lease: Lease) -> list[Action]:
        self._abandon()
        return [Reopen(Side.TARGET, lease.worker)]

    def _commit(self, verdict: Verdict, timing: Timing, now: float) -> list[Action]:
        done = self._round
        commit = Commit(
            index=self.output_len,
            verdict=verdict,
            proposal=done.proposal,
            round_id=done.round_id,
            missed=done.missed,
            asked=done.asked,
            lease_epoch=self.leases.epoch,
            draft_s=done.ready - done.began,
            verify_s=now - done.sent,
            network_us=done.network_us + _network_us(now - done.sent, timing),
        )
        self.tokens.extend(verdict.tokens)
        self.digest.extend(verdict.tokens)
        self.stats.add(verdict, commit.drafted, done.missed)
        self.strikes = 0
        self.rounds_on_target += 1
        self._verify = None
        if verdict.finish is None:
            self.phase = Phase.NEEDS_DRAFT
            return [commit]
        self.phase = Phase.DONE
        return [commit, Finished(verdict.finish)]

    def _make_ready(self, now: float, proposal: Proposal) -> None:
        self._round.ready, self._round.proposal = now, proposal
        self.phase = Phase.READY

    def _fence(self, lease: Lease) -> Fence:
        return Fence(
            session_id=self.spec.session_id,
            incarnation=lease.incarnation,
            lease_epoch=lease.epoch,
            round_id=self._round.round_id,
            base_len=len(self.tokens),
            prefix_digest=self.digest.value,
        )


def _network_us(round_trip_s: float, timing: Timing) -> int:
    return max(0, int(round_trip_s * 1e6) - timing.residence_us)
