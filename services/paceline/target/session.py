"""One session on its verifier: its ledger, its answer, how much of it the KV state covers, and its round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from paceline.engine.interface import Scores, Slice, SliceResult
from paceline.speculation.acceptance import agree
from paceline.speculation.ledger import SessionLedger
from paceline.speculation.messages import (
    GRAMMAR,
    Draft,
    Fence,
    Proposal,
    Resync,
    ResyncReason,
    SessionOpen,
    SparseDistribution,
    Timing,
    TokenLogprobs,
    Verdict,
    VerifyTask,
)
from paceline.speculation.sampling import NOTHING
from paceline.speculation.shaping import Shaping
from paceline.target.answer import Answer
from paceline.target.schedule import Share
from paceline.target.spans import RoundSpan


@dataclass(slots=True)
class Round:
    """A round that was taken and is not answered yet. Times in seconds."""

    task: VerifyTask
    drafts: tuple[Draft, ...]  # those of the proposal that may be verified, or the verifier's own
    arrived_s: float
    own: bool = False  # the drafts are what the grammar forces
    started_s: float | None = None  # its first step's start
    step_s: float = 0.0  # spent in steps so far

    @property
    def fence(self) -> Fence:
        return self.task.fence

    def timing(self, now: float) -> Timing:
        """Where the round's time went, if it is answered now."""
        started = now if self.started_s is None else self.started_s
        return Timing(_us(started - self.arrived_s), _us(self.step_s), _us(now - self.arrived_s))


class Session:
    """The verifier's half of a lease.

    Invariants: ``0 <= kv_len <= len(tokens)``, and below it while the answer goes on, because the last token is fed by
    the round after it; ``answer`` and ``shaping`` are what ``ledger.tokens`` make of them; the KV state never exceeds
    ``reserved``. While the prompt's log probabilities are wanted, those of ``tokens[1 : kv_len + 1]`` are there.
    """

    __slots__ = ("answer", "kv_len", "ledger", "prompt_logprobs", "reserved", "reused", "round", "shaping", "touched_s")

    def __init__(
        self,
        opening: SessionOpen,
        answer: Answer,
        *,
        reserved: int,
        kv_len: int,
        now: float,
        shaping: Shaping | None = None,
    ) -> None:
        self.ledger = SessionLedger(opening)
        self.answer = answer
        self.shaping = shaping
        self.reserved = reserved  # KV positions set aside
        assert kv_len <= reusable_kv(opening), (kv_len, opening.session_id)
        self.kv_len = self.reused = kv_len  # reused: tokens that were in the KV state when it was opened
        # As far as they are known; None if they are not wanted (any more).
        self.prompt_logprobs: list[TokenLogprobs] | None = [] if wants_prompt_logprobs(opening) else None
        self.touched_s = now
        self.round: Round | None = None

    @property
    def session_id(self) -> str:
        return self.ledger.session_id

    @property
    def router_id(self) -> str:
        return self.ledger.opening.router_id

    @property
    def missing(self) -> int:
        """Tokens that are not in the KV state."""
        return len(self.ledger.tokens) - self.kv_len

    def kv_prefix(self, tokens: Sequence[int]) -> int:
        """How many leading tokens of a sequence the KV state covers."""
        pairs = zip(self.ledger.tokens[: self.kv_len], tokens, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def usable(self, proposal: Proposal, *, most: int, vocab_size: int) -> tuple[Draft, ...]:
        """The draft tokens worth verifying: no more than could be committed, none the target doesn't know or that its
        grammar forbids, for it samples none of those.

        In rejection mode, whether a draft is verified must not depend on it: one that cannot come is judged like any
        other, and those after one that the target doesn't know, which it has no row for, are left out. Without the
        distributions drafts were drawn from, they are no use.
        """
        room = max(0, min(most, self.answer.remaining - 1))
        known = sum(1 for _ in takewhile(lambda token: token < vocab_size, proposal.tokens[:room]))
        if not self.ledger.opening.sampling.rejects:
            drafts = proposal.tokens[:known]
            fitting = known if self.shaping is None else self.shaping.fitting(drafts)
            return tuple(Draft(token) for token in drafts[:fitting])
        pairs = zip(proposal.tokens, proposal.distributions, strict=bool(proposal.distributions))
        return tuple(Draft(token, q) for token, q in pairs)[: min(known + 1, room)]

    def forced(self, *, most: int) -> tuple[Draft, ...]:
        """The verifier's own drafts, for a proposal that leaves it none: what the grammar leaves no choice about."""
        if self.shaping is None:
            return ()
        tokens = self.shaping.forced(())[: max(0, min(most, self.answer.remaining - 1))]
        if not self.ledger.opening.sampling.rejects:
            return tuple(Draft(token) for token in tokens)
        return tuple(Draft(token, SparseDistribution((token,), (1.0,))) for token in tokens)

    def slice(self, share: Share, vocab_size: int) -> Slice:
        """The session's rows in a step."""
        assert self.round is not None
        opening, start = self.ledger.opening, self.kv_len
        drafts = self.round.drafts[: share.drafts]
        judged = opening.sampling.rejects or opening.sampling.relaxed_acceptance is not None
        # A draft the target doesn't know is never accepted, so that what follows it is of no interest.
        fed = tuple(draft.token if draft.token < vocab_size else 0 for draft in drafts)
        return Slice(
            session_id=self.session_id,
            start=start,
            tokens=tuple(self.ledger.tokens[start : start + share.rows]) + fed,
            samples=share.drafts + 1 if share.caught_up else 0,
            sampling=opening.sampling,
            prompt_len=opening.prompt_len,
            choice=opening.choice,
            shaping=self.shaping.rows(fed) if self.shaping and share.caught_up else (),
            logprobs=opening.sampling.logprobs,
            scored=self._scored(share.rows),
            scored_likeliest=opening.sampling.prompt_logprobs or 0,
            drafts=drafts if judged else (),
        )

    def _scored(self, rows: int) -> tuple[int, ...]:
        """The tokens of the prompt that follow the next rows, if their log probabilities are wanted."""
        if self.prompt_logprobs is None:
            return ()
        end = min(self.kv_len + rows + 1, self.ledger.opening.prompt_len)
        return tuple(self.ledger.tokens[self.kv_len + 1 : end])

    def catch_up(self, rows: int, scores: Scores) -> None:
        """A step fed ``rows`` of the tokens that were missing, and sampled nothing."""
        self.kv_len += rows
        if self.prompt_logprobs is not None:
            self.prompt_logprobs += scores.prompt

    def commit(self, served: Round, verified: int, drawn: SliceResult, model_id: str) -> Verdict | Resync:
        """Decide acceptance and commit the target's samples, up to the answer's end, or to where nothing may follow."""
        agreement = agree([draft.token for draft in served.drafts[:verified]], drawn.samples)
        scores = drawn.scores
        possible = agreement.tokens[:-1] if agreement.tokens[-1] == NOTHING else agreement.tokens
        if not possible:
            return Resync(ResyncReason.DEAD_END, len(self.ledger.tokens))
        text, count = [], 0
        for token in possible:
            text.append(self.answer.push(token))
            count += 1
            if self.answer.finish is not None:
                break
        verdict = Verdict(
            tokens=agreement.tokens[:count],
            sources=agreement.sources[:count],
            verify_len=verified,
            accepted=agreement.accepted,
            text="".join(text),
            finish=self.answer.finish,
            verifier_model_id=model_id,
            logprobs=scores.samples[:count],
            prompt_logprobs=(*(self.prompt_logprobs or ()), *scores.prompt),
            lossy=any(drawn.relaxed[:count]),
            drafter=GRAMMAR if served.own else "",
        )
        self.prompt_logprobs = None
        # Accepted drafts are in the KV state already; the corrected or bonus token is not. While the answer goes on,
        # the last token is fed by the next round, even an accepted one that nothing may follow.
        fed = count - 1 if verdict.finish is None else min(count, agreement.accepted)
        self.kv_len = len(self.ledger.tokens) + fed
        self.ledger.commit(served.fence, verdict)
        if self.shaping is not None:
            self.shaping.commit(verdict.tokens)
        return verdict

    def span(self, served: Round, share: Share, verdict: Verdict | None) -> RoundSpan:
        """What tracing is told of the round's part in a step."""
        opening = self.ledger.opening
        return RoundSpan(
            trace=served.task.trace,
            session_id=self.session_id,
            request_id=opening.request_id,
            tenant=opening.tenant,
            round_id=served.fence.round_id,
            rows=share.total,
            verify_len=verdict.verify_len if verdict else 0,
            accepted=verdict.accepted if verdict else 0,
            tokens=verdict.tokens if verdict else (),
            reused=self.reused,
        )

    def check_integrity(self) -> None:
        """Assert the invariants, printing all terms."""
        ledger, answer = self.ledger, self.answer
        length, prompt_len = len(ledger.tokens), ledger.opening.prompt_len
        known = self.prompt_logprobs
        terms = f"{self.session_id}: kv {self.kv_len}, tokens {length}, prompt {prompt_len}, reserved {self.reserved}"
        assert 0 <= self.kv_len <= length <= self.reserved, terms
        assert self.kv_len < length or answer.finish is not None, terms
        assert known is None or len(known) == min(self.kv_len, prompt_len - 1), (
            f"{terms}: {len(known)} log probabilities"
        )
        assert answer.committed == ledger.committed, f"{terms}: answer {answer.committed}, ledger {ledger.committed}"
        assert ledger.committed <= ledger.opening.sampling.max_tokens, f"{terms}: {ledger.opening.sampling}"
        assert answer.finish is None or self.round is None, f"{terms}: a round after {answer.finish}"


def wants_prompt_logprobs(opening: SessionOpen) -> bool:
    """Whether the first verdict reports them: not of an answer that has begun, whose caller has them already."""
    return opening.sampling.prompt_logprobs is not None and len(opening.tokens) == opening.prompt_len


def reusable_kv(opening: SessionOpen) -> int:
    """How many leading tokens of a session may come from a KV state computed before.

    The last token is always fed, and every token of a prompt whose log probabilities are wanted.
    """
    return 0 if wants_prompt_logprobs(opening) else len(opening.tokens) - 1


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
