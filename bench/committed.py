"""Many seeds of one request through drafter, verifier and engine step, and the exact law of what they commit.

The model is a table over a few tokens, so that every answer there can be is enumerated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from paceline.drafters.interface import Ask, Drafter, DraftSession
from paceline.drafters.model import ModelDrafter
from paceline.engine.fake import FakeEngine, FakeOptions
from paceline.speculation.messages import Fence, Proposal, SessionOpen, TokenSource, Verdict, VerifyTask
from paceline.speculation.params import SamplingParams
from paceline.speculation.sampling import Row, probabilities, shaped
from paceline.speculation.shaping import GrammarState, shaping_of
from paceline.target.sessions import Limits
from paceline.target.verifier import Verifier
from torch import Tensor

VOCABULARY = 5
LENGTH = 5  # tokens of an answer, at most
K = 2
END = -1  # in place of tokens after the answer's end
PROMPT = (1, 2, 0)
BATCH = 256  # sessions at once
CHOICES = 64  # of one seed
PAGE = 64  # KV positions a session takes up at least
TABLE = FakeOptions(seed=5, order=1, vocab_size=VOCABULARY, spread=1.0, eos=0)
DRAFT_QUALITY = 0.5  # about two drafts in three are accepted

Tokens = tuple[int, ...]
Law = dict[Tokens, float]  # answers, padded with END, and their probabilities
MakeGrammar = Callable[[Sequence[int]], GrammarState]  # of the tokens committed


class NoRepeats:
    """A grammar: no token comes twice in a row."""

    def __init__(self, committed: Sequence[int]) -> None:
        self._last = committed[-1] if committed else END

    def allowed(self, following: Sequence[int]) -> Tensor | None:
        out = torch.ones(VOCABULARY, dtype=torch.bool)
        last = following[-1] if following else self._last
        if last != END:
            out[last] = False
        return out

    def fitting(self, drafts: Sequence[int]) -> int:
        before = (self._last, *drafts)
        return next((i for i, token in enumerate(drafts) if token == before[i]), len(drafts))

    def forced(self, following: Sequence[int]) -> tuple[int, ...]:
        return ()

    def commit(self, tokens: Sequence[int]) -> None:
        self._last = tokens[-1]


@dataclass(frozen=True, slots=True)
class Case:
    """A request whose committed tokens are looked at."""

    name: str
    params: SamplingParams
    grammar: MakeGrammar | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was committed, and how."""

    tokens: Tokens
    sources: tuple[TokenSource, ...]


class SkewedEngine(FakeEngine):
    """A planted bias: in every distribution, a part of the likeliest token's probability goes to the least likely."""

    def __init__(self, options: FakeOptions, shift: float, *, kv_tokens: int) -> None:
        super().__init__(options, kv_tokens=kv_tokens, sleep=None)
        self._shift = shift

    def next_logits(self, tokens: list[int] | tuple[int, ...]) -> Tensor:
        p = torch.softmax(super().next_logits(tokens).double(), 0)
        p[p.argmax()] -= self._shift
        p[torch.where(p > 0, p, 1.0).argmin()] += self._shift
        return p.log().float()


class Misreporting(ModelDrafter):
    """A planted bug: drafts are drawn from the two likeliest tokens, and the whole distribution is sent as q."""

    def propose(self, asks: Sequence[Ask]) -> list[Proposal]:
        return [_redrawn(proposal) for proposal in super().propose(asks)]


def _redrawn(proposal: Proposal) -> Proposal:
    tokens = []
    for token, q in zip(proposal.tokens, proposal.distributions, strict=True):
        tokens.append(token if token in q.ids[:2] else q.ids[0])
    return replace(proposal, tokens=tuple(tokens))


class _Silent:
    """Spells nothing."""

    def feed(self, token: int) -> str:
        return ""


def target(shift: float = 0.0) -> FakeEngine:
    """The model; with ``shift``, a biased one."""
    kv_tokens = BATCH * PAGE
    return (
        SkewedEngine(TABLE, shift, kv_tokens=kv_tokens) if shift else FakeEngine(TABLE, kv_tokens=kv_tokens, sleep=None)
    )


def drafter(kind: type[ModelDrafter] = ModelDrafter) -> ModelDrafter:
    """A draft model that is right about some of it."""
    options = replace(TABLE, quality=DRAFT_QUALITY)
    return kind(FakeEngine(options, kv_tokens=BATCH * PAGE, sleep=None), step_tokens=BATCH * (K + len(PROMPT) + 2))


def answers(case: Case, count: int, engine: FakeEngine, proposer: Drafter) -> Iterator[list[Answer]]:
    """So many answers, each under a seed and choice of its own, in batches."""
    limits = Limits(max_sessions=BATCH, max_queue=BATCH, step_tokens=BATCH * (K + len(PROMPT) + 2), max_draft_tokens=K)
    verifier = Verifier(engine, engine.info, limits=limits, incarnation="bench", detokenizer=_Silent)
    for start in range(0, count, BATCH):
        yield _Batch(case, range(start, min(count, start + BATCH)), verifier, engine, proposer).run()


class _Batch:
    def __init__(self, case: Case, numbers: range, verifier: Verifier, engine: FakeEngine, proposer: Drafter) -> None:
        self.verifier, self.engine, self.proposer = verifier, engine, proposer
        self.sources: dict[str, list[TokenSource]] = {}
        self.going: dict[str, DraftSession] = {}
        self.done: list[Answer] = []
        for number in numbers:
            if number % CHOICES == 0 or number == numbers.start:
                params = replace(case.params, seed=number // CHOICES)
            opening = SessionOpen(f"s{number}", 1, "r", PROMPT, len(PROMPT), params, choice=number % CHOICES)
            verifier.open(opening, 0.0, case.grammar(()) if case.grammar else None)
            session = self.going[opening.session_id] = DraftSession.opened(opening, proposer.name)
            proposer.open(session)
            self.sources[opening.session_id] = []

    def run(self) -> list[Answer]:
        round_id = 0
        while self.going:
            round_id += 1
            self._round(round_id)
        return self.done

    def _round(self, round_id: int) -> None:
        asks = [
            Ask(session_id, len(session.tokens), most)
            for session_id, session in self.going.items()
            if (most := min(K, LENGTH - (len(session.tokens) - len(PROMPT)) - 1)) > 0
        ]
        drafted = dict(zip((ask.session_id for ask in asks), self.proposer.propose(asks), strict=True))
        for session_id, session in self.going.items():
            fence = Fence(session_id, "bench", 1, round_id, len(session.tokens), session.digest.value)
            answered = self.verifier.submit("r", VerifyTask(fence, drafted.get(session_id, Proposal(()))), 0.0)
            assert answered is None, answered
        plan = self.verifier.plan(0.0)
        assert plan is not None, "rounds wait"
        for served in self.verifier.complete(plan, self.engine.step(plan), 0.0):
            assert served.result is not None, "every round fits into the step"
            assert isinstance(served.result.outcome, Verdict), served.result
            self._take(served.result.fence.session_id, served.result.outcome)

    def _take(self, session_id: str, verdict: Verdict) -> None:
        session = self.going[session_id]
        session.tokens.extend(verdict.tokens)
        session.digest.extend(verdict.tokens)
        self.sources[session_id].extend(verdict.sources)
        if verdict.finish is not None:
            self.done.append(Answer(tuple(session.tokens[len(PROMPT) :]), tuple(self.sources.pop(session_id))))
            self.verifier.release(session_id, 1)
            self.proposer.close(session_id)
            del self.going[session_id]


def next_law(case: Case, engine: FakeEngine, prefix: Tokens) -> Tensor:
    """The target's exact distribution after a prefix of the answer: float64 [V]."""
    tokens = (*PROMPT, *prefix)
    shaping = shaping_of(
        case.params, tokens, prompt_len=len(PROMPT), vocab_size=VOCABULARY, eos=engine.info.eos_token_ids,
        grammar=case.grammar(prefix) if case.grammar else None,
    )  # fmt: skip
    row = Row(case.params, len(prefix), 0, shaping.row() if shaping else None)
    return probabilities(shaped(engine.next_logits(tokens), row), case.params)


def exact(case: Case) -> tuple[Law, dict[Tokens, Tensor]]:
    """The law of whole answers, and the distribution after every prefix that can come."""
    engine = target()
    ends = case.params.ends(engine.info.eos_token_ids)
    law: Law = {}
    after: dict[Tokens, Tensor] = {}
    open_: Law = {(): 1.0}
    while open_:
        following: Law = {}
        for prefix, chance in open_.items():
            after[prefix] = next_law(case, engine, prefix)
            for token, share in enumerate(after[prefix].tolist()):
                if share:
                    grown = (*prefix, token)
                    whole = token in ends or len(grown) == LENGTH
                    (law if whole else following)[padded(grown) if whole else grown] = chance * share
        open_ = following
    return law, after


def padded(tokens: Tokens) -> Tokens:
    """An answer in LENGTH places."""
    return tokens + (END,) * (LENGTH - len(tokens))


def crossings(found: Sequence[Answer], source: TokenSource) -> dict[Tokens, Counter[int]]:
    """For every prefix whose last token came to be so: what was committed after it."""
    out: dict[Tokens, Counter[int]] = {}
    for answer in found:
        for place in range(1, len(answer.tokens)):
            if answer.sources[place - 1] is source:
                out.setdefault(answer.tokens[:place], Counter())[answer.tokens[place]] += 1
    return out
