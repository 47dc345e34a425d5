"""One session on its verifier: its ledger, its answer, how much of it the KV state covers, and its round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from paceline.engine.interface import Slice
from paceline.speculation.acceptance import agree
from paceline.speculation.ledger import SessionLedger
from paceline.speculation.messages import Fence, Resync, ResyncReason, SessionOpen, Timing, Verdict, VerifyTask
from paceline.speculation.sampling import NOTHING
from paceline.speculation.shaping import Shaping
from paceline.target.answer import Answer
from paceline.target.schedule import Share
from paceline.target.spans import RoundSpan


@dataclass(slots=True)
class Round:
    """A round that was taken and is not answered yet. Times in seconds."""

    task: VerifyTask
    drafts: tuple[int, ...]  # those of the proposal that may be verified
    arrived_s: float
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
    ``reserved``.
    """

    __slots__ = ("answer", "kv_len", "ledger", "reserved", "round", "shaping", "touched_s")

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
        self.kv_len = min(kv_len, len(opening.tokens) - 1)
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

    def usable(self, drafts: Sequence[int], *, most: int, vocab_size: int) -> tuple[int, ...]:
        """The draft tokens worth verifying: no more than could be committed, none the target doesn't know."""
        room = max(0, min(most, self.answer.remaining - 1))
        return tuple(takewhile(lambda token: token < vocab_size, drafts[:room]))

    def slice(self, share: Share) -> Slice:
        """The session's rows in a step."""
        assert self.round is not None
        opening, start = self.ledger.opening, self.kv_len
        drafts = self.round.drafts[: share.drafts]
        fed = tuple(self.ledger.tokens[start : start + share.rows]) + drafts
        return Slice(
            session_id=self.session_id,
            start=start,
            tokens=fed,
            samples=share.drafts + 1 if share.caught_up else 0,
            sampling=opening.sampling,
            prompt_len=opening.prompt_len,
            choice=opening.choice,
            shaping=self.shaping.rows(drafts) if self.shaping and share.caught_up else (),
        )

    def commit(self, served: Round, verified: int, samples: Sequence[int], model_id: str) -> Verdict | Resync:
        """Decide acceptance and commit the target's samples, up to the answer's end, or to where nothing may follow."""
        agreement = agree(served.drafts[:verified], samples)
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
        )
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
        )

    def check_integrity(self) -> None:
        """Assert the invariants, printing all terms."""
        ledger, answer = self.ledger, self.answer
        length, prompt_len = len(ledger.tokens), ledger.opening.prompt_len
        terms = f"{self.session_id}: kv {self.kv_len}, tokens {length}, prompt {prompt_len}, reserved {self.reserved}"
        assert 0 <= self.kv_len <= length <= self.reserved, terms
        assert self.kv_len < length or answer.finish is not None, terms
        assert answer.committed == ledger.committed, f"{terms}: answer {answer.committed}, ledger {ledger.committed}"
        assert ledger.committed <= ledger.opening.sampling.max_tokens, f"{terms}: {ledger.opening.sampling}"
        assert answer.finish is None or self.round is None, f"{terms}: a round after {answer.finish}"


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
