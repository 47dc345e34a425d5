"""One answer by verifiers and a drafter over fake engines, round by round, without any service around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from paceline.drafters.interface import Ask, Drafter, DraftSession
from paceline.engine.fake import FakeEngine, FakeOptions, fake_tokenizer_files
from paceline.engine.grammar import Grammars
from paceline.runtime.text import TextCodec
from paceline.speculation.digest import PrefixDigest
from paceline.speculation.messages import (
    EMPTY_PROPOSAL,
    GRAMMAR,
    Fence,
    Finish,
    Proposal,
    Resync,
    ResyncReason,
    SessionOpen,
    TokenLogprobs,
    Verdict,
    VerifyTask,
)
from paceline.target.sessions import Limits
from paceline.target.verifier import Verifier

CODEC = TextCodec(fake_tokenizer_files())


@dataclass
class Run:
    """An answer, and what the verdicts said of it.

    The opening's first prompt_len tokens are all its tokens: nothing is committed yet.
    """

    table: FakeOptions
    opening: SessionOpen
    drafter: Drafter | None
    k: int
    step_tokens: int = 64
    grammars: Grammars | None = None
    output: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    accepted: int = 0
    forced: int = 0  # of those, what the verifier drafted itself
    finish: Finish | None = None
    dead_end: bool = False
    rounds: int = 0

    def __post_init__(self) -> None:
        self.prompt = self.opening.tokens
        self.move()
        self.session = DraftSession.opened(self.opening, "")
        if self.drafter is not None:
            self.drafter.open(self.session)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and committed."""
        return (*self.prompt, *self.output)

    def move(self) -> None:
        """The verifier, if there was one, is lost: another goes on from the tokens."""
        self.opening = replace(self.opening, tokens=self.tokens, lease_epoch=self.opening.lease_epoch + 1)
        self.engine = FakeEngine(self.table, sleep=None)
        limits = Limits(step_tokens=self.step_tokens)
        self.verifier = Verifier(
            self.engine, self.engine.info, limits=limits, incarnation="i", detokenizer=CODEC.detokenizer
        )
        grammar = self.opening.sampling.grammar
        state = None if grammar is None or self.grammars is None else self.grammars.state(grammar, self.output)
        self.verifier.open(self.opening, 0.0, state)

    def propose(self) -> Proposal:
        """What the drafter says now."""
        if self.drafter is None or not self.k:
            return EMPTY_PROPOSAL
        return self.drafter.propose([Ask(self.opening.session_id, len(self.tokens), self.k)])[0]

    def round(self) -> None:
        """Draft, verify, commit."""
        self.rounds += 1
        digest = PrefixDigest(self.tokens).value
        fence = Fence(self.opening.session_id, "i", self.opening.lease_epoch, self.rounds, len(self.tokens), digest)
        assert self.verifier.submit("r", VerifyTask(fence, self.propose()), 0.0) is None
        answer = None
        while answer is None:
            plan = self.verifier.plan(0.0)
            assert plan is not None
            served = self.verifier.complete(plan, self.engine.step(plan), 0.0)
            self.verifier.check_integrity()
            answer = served[0].result
        if isinstance(answer.outcome, Resync):
            assert answer.outcome.reason is ResyncReason.DEAD_END
            self.dead_end = True
        else:
            self._take(answer.outcome)

    def _take(self, verdict: Verdict) -> None:
        self.output += verdict.tokens
        self.session.tokens.extend(verdict.tokens)
        self.session.digest.extend(verdict.tokens)
        self.logprobs += verdict.logprobs
        self.prompt_logprobs += verdict.prompt_logprobs
        self.accepted += verdict.accepted
        self.forced += verdict.accepted if verdict.drafter == GRAMMAR else 0
        self.finish = verdict.finish

    def all(self, *, move_after: int | None = None) -> Sequence[int]:
        """The whole answer, moved once when it has so many tokens."""
        while self.finish is None and not self.dead_end:
            self.round()
            if move_after is not None and len(self.output) >= move_after and self.finish is None:
                self.move()
                move_after = None
        return tuple(self.output)
