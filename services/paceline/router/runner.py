"""Runs the rounds of all answers: turns their actions into effects, batches and events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from paceline.router.answers import Answer, round_facts
from paceline.router.counters import RoundCounters
from paceline.router.pairing import Draft, Registry
from paceline.router.placement import Placement, Policy
from paceline.router.requests import Completed
from paceline.router.spans import RouterSpans
from paceline.speculation.actions import Action, Answered, AskDraft, Commit, Failed, Finished, Phase, Reopen
from paceline.speculation.cohorts import Cohorts
from paceline.speculation.errors import PacelineError, Unavailable
from paceline.speculation.leases import Side
from paceline.speculation.messages import DraftResult, Proposal, VerifyResult
from paceline.speculation.params import SpeculationMode


class Runner:
    """Rounds of the answers under way; the dispatcher feeds it. Effects go to ``places.effects``."""

    def __init__(self, policy: Policy, registry: Registry, *, spans: RouterSpans, perf: Callable[[], float]) -> None:
        self.policy = policy
        self.registry = registry
        self.counters = RoundCounters()
        self.places = Placement(registry, policy, self.counters)
        self.answers: dict[str, Answer] = {}
        self.cohorts: dict[str, Cohorts] = {}  # by verifier
        self.spans = spans
        self._perf = perf

    # Rounds -----------------------------------------------------------------------------------------------------

    def begin(self, answer: Answer, now: float) -> None:
        """Begin a session's next round."""
        session = answer.session
        lease = session.leases.opened(Side.DRAFT)
        draft = self.registry.drafts.get(lease.worker) if lease is not None else None
        k, price = 0, (0.0, 0.0)
        if draft is not None:
            load = self.cohorts_of(answer).load(answer.session_id)
            k = session.draft_tokens(now, self.policy.default_k, self._room(answer, draft), load)
            if k and not draft.breaker.allows(answer.session_id, now):
                k = 0
            if session.payoff is not None and session.spec.speculation.mode is SpeculationMode.AUTO:
                price = session.payoff.prices(k, load)  # who fixes K wants drafts, whatever they cost
        wait = draft is None or draft.breaker.closed
        actions = session.begin(now, k, lambda round_id: self.spans.start_round(answer.span, round_id), wait=wait)
        deadline = session.draft_deadline if session.phase is Phase.DRAFTING else None
        cohorts = self.cohorts_of(answer)
        cohorts.begin(answer.session_id, now, deadline, alone=session.rounds_on_target == 0)
        self.act(answer, [_priced(action, *price) for action in actions], now)

    def on_draft(self, answer: Answer, result: DraftResult, now: float) -> None:
        """One session's answer in a draft worker's message."""
        session, before = answer.session, answer.session.ignored
        actions = session.on_draft(_within(result, answer.model.vocab_size), now)
        self.counters.ignored_messages += session.ignored - before
        self.act(answer, actions, now)

    def on_verdict(self, answer: Answer, result: VerifyResult, now: float) -> None:
        """One session's answer in a verifier's message."""
        before = answer.session.ignored
        self.act(answer, answer.session.on_verdict(result, now), now)
        self.counters.ignored_messages += answer.session.ignored - before

    def give_up_drafts(self, now: float) -> list[Answer]:
        """Go on without drafts whose deadline has passed; the answers concerned."""
        late = [
            (self.answers[session_id], cohorts)
            for cohorts in self.cohorts.values()
            for session_id in cohorts.expired(now)
        ]
        for answer, cohorts in late:
            self._missed(answer, cohorts, now)
        return [answer for answer, _ in late]

    def dispatch(self, now: float) -> None:
        """Send the batches that are due."""
        for address, cohorts in self.cohorts.items():
            for batch in cohorts.due(now):
                self.counters.verify_batches += 1
                self.counters.verify_batch_sessions += len(batch)
                tasks = [self.answers[session_id].session.dispatch(now).task for session_id in batch]
                if not any(task.proposal.tokens for task in tasks):
                    cohorts.draft_s.add(0.0)
                self.places.effects.verifies[address].extend(tasks)

    def charge(self, answers: Sequence[Answer], start: float) -> None:
        """Share the router's own time since ``start`` (by its ``perf`` clock) among answers."""
        spent = (self._perf() - start) * 1e6
        self.counters.router_us += spent
        for answer in answers:
            answer.router_us += spent / len(answers)

    def perf(self) -> float:
        """The clock of the router's own time, seconds."""
        return self._perf()

    # Workers ----------------------------------------------------------------------------------------------------

    def leave_draft(self, session_ids: Iterable[str], now: float, *, release: bool) -> None:
        """Take sessions from their draft worker and look for another; rounds go on without drafts meanwhile."""
        for session_id in sorted(session_ids):
            answer = self.answers[session_id]
            self.places.drop(answer, Side.DRAFT, now, release=release)
            if answer.session.phase is Phase.READY:
                self.cohorts_of(answer).ready(session_id, now)
            self.places.find_draft(answer, now)

    def leave_target(self, answer: Answer, now: float, *, release: bool) -> None:
        """Take a session from its verifier and find another."""
        lease = self.places.drop(answer, Side.TARGET, now, release=release)
        if lease is not None:
            answer.refusal = Unavailable(f"verifier {lease.worker} was lost")
            self.cohorts[lease.worker].remove(answer.session_id)
        self.end_if(answer, self.places.find_target(answer, now), now)

    def cohorts_of(self, answer: Answer) -> Cohorts:
        """The cohorts of the verifier that holds the session."""
        lease = answer.session.leases.opened(Side.TARGET)
        assert lease is not None, "only sessions that a target holds run rounds"
        return self.cohorts[lease.worker]

    # Ends -------------------------------------------------------------------------------------------------------

    def end_if(self, answer: Answer, error: PacelineError | None, now: float) -> None:
        """End the answer if there is an error."""
        if error is None:
            return
        self.counters.answers_failed += 1
        self.places.effects.events.append((answer.session_id, error))
        self.forget(answer, now, error)

    def forget(self, answer: Answer, now: float, outcome: Completed | BaseException) -> None:
        """The answer is over: give it back on both workers at once."""
        answer.session.phase = Phase.DONE
        self.answers.pop(answer.session_id, None)
        for side in Side:
            opened = answer.session.leases.opened(side) is not None  # an opening under way is released when it is done
            lease = self.places.drop(answer, side, now, release=opened)
            if lease is not None and side is Side.TARGET and lease.worker in self.cohorts:
                self.cohorts[lease.worker].remove(answer.session_id)
        self.spans.end_request(answer.span, outcome)

    # Actions ----------------------------------------------------------------------------------------------------

    def act(self, answer: Answer, actions: Sequence[Action], now: float) -> None:
        """Do what a session asks for, then begin its next round if it is due."""
        for action in actions:
            if isinstance(action, AskDraft):
                self.places.effects.drafts[action.worker].append(action.task)
            elif isinstance(action, Answered):
                self._answered(answer, action, now)
            elif isinstance(action, Commit):
                self._commit(answer, action)
            elif isinstance(action, Reopen):
                self._reopen(answer, action, now)
            elif isinstance(action, Failed):
                self.end_if(answer, action.error, now)
            elif isinstance(action, Finished):
                self._finish(answer, action, now)
        if answer.session.phase is Phase.NEEDS_DRAFT:
            self.begin(answer, now)

    def _answered(self, answer: Answer, answered: Answered, now: float) -> None:
        draft = self.registry.drafts.get(answered.worker)
        if draft is not None and answered.took_s <= self.policy.draft_deadline_s:
            draft.breaker.answered()
        if answered.waited:
            cohorts = self.cohorts_of(answer)
            cohorts.ready(answer.session_id, now)
            cohorts.draft_s.add(answered.took_s)

    def _commit(self, answer: Answer, commit: Commit) -> None:
        event, counters = answer.commit(commit), self.counters
        counters.rounds += 1
        counters.committed_tokens += len(event.tokens)
        counters.drafted_tokens += event.drafted
        counters.verified_tokens += event.verified
        counters.accepted_tokens += event.accepted
        counters.missed_drafts += commit.missed
        counters.draft_wait_us += int(commit.draft_s * 1e6)
        counters.verify_wait_us += int(commit.verify_s * 1e6)
        counters.network_us += commit.network_us
        if lease := answer.session.leases.get(Side.TARGET):
            self._learn(answer, commit, self.cohorts[lease.worker])
        self.places.effects.events.append((answer.session_id, event))
        workers = [lease.worker if (lease := answer.session.leases.get(side)) else "" for side in Side]
        self.spans.end_round(answer.span, round_facts(event, commit, draft_worker=workers[1], verifier=workers[0]))

    def _learn(self, answer: Answer, commit: Commit, cohorts: Cohorts) -> None:
        """What a round says of what rounds cost, and of whether its drafts paid."""
        verdict, payoff = commit.verdict, answer.session.payoff
        cohorts.observe_commit(len(verdict.tokens), commit.network_us / 1e6)
        if payoff is None or not commit.asked:
            return
        theirs = not verdict.drafter  # else what was verified are the verifier's own drafts
        payoff.observe(
            asked=commit.asked,
            drafted=len(commit.proposal.tokens),
            verified=verdict.verify_len if theirs else 0,
            accepted=verdict.accepted if theirs else 0,
            draft_s=commit.draft_s,
            missed=commit.missed,
            load=cohorts.load(answer.session_id),
        )

    def _finish(self, answer: Answer, finished: Finished, now: float) -> None:
        completed = answer.complete(finished.finish)
        self.counters.answers_completed += 1
        self.places.effects.events.append((answer.session_id, completed))
        self.forget(answer, now, completed)

    def _reopen(self, answer: Answer, action: Reopen, now: float) -> None:
        if action.side is Side.TARGET:
            self.counters.target_resyncs += 1
            self.leave_target(answer, now, release=False)
        else:
            self.counters.draft_resyncs += 1
            self.leave_draft([answer.session_id], now, release=False)

    def _missed(self, answer: Answer, cohorts: Cohorts, now: float) -> None:
        session = answer.session
        if not session.expire_draft(now):
            return
        cohorts.ready(answer.session_id, now)
        cohorts.draft_s.add(self.policy.draft_deadline_s)
        lease = session.leases.get(Side.DRAFT)
        draft = self.registry.drafts.get(lease.worker) if lease is not None else None
        if draft is None or not draft.breaker.missed(session.patience.asked_at, now):
            return
        if self.registry.better_draft_exists(draft.address, answer.model, answer.drafter):
            self.leave_draft(frozenset(draft.sessions), now, release=True)

    def _room(self, answer: Answer, draft: Draft) -> int:
        """How many draft tokens both workers take, and the context has room for."""
        context = answer.model.context_length - len(answer.session.tokens) - 1
        limits = [limit for limit in (draft.info.max_draft_tokens, answer.model.max_draft_tokens) if limit]
        return max(0, min([context, *limits]))


def _priced(action: Action, token_s: float, row_s: float) -> Action:
    """A question with what time is worth."""
    if not isinstance(action, AskDraft):
        return action
    return replace(action, task=replace(action.task, token_us=int(token_s * 1e6), row_us=int(row_s * 1e6)))


def _within(result: DraftResult, vocab_size: int) -> DraftResult:
    """The result with its proposal cut before the first id that is no token of the target.

    Drafts that come with distributions are left as they are: cutting one off for what it is would be biased, and the
    target rejects it in place.
    """
    if not isinstance(result.outcome, Proposal) or result.outcome.distributions:
        return result
    tokens = result.outcome.tokens
    keep = next((i for i, token in enumerate(tokens) if token >= vocab_size), len(tokens))
    if keep == len(tokens):
        return result
    confidence = result.outcome.confidence[:keep]
    return replace(result, outcome=replace(result.outcome, tokens=tokens[:keep], confidence=confidence))
