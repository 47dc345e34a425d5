"""The drafter ``auto``: n-gram lookup or a model's drafts, per session and round whichever is expected to gain more.

Both are valued in tokens: those expected to be accepted, less those that could be committed in the time it takes to
draft and to verify them, for a question says what time is worth. A lookup costs next to nothing and is made in every
round; what its agreement has been worth is known (``evidence``). The model's gain is known from its own drafts; one
that stopped paying is asked again now and then (``speculation.payoff``). A proposal is the one's or the other's and
says whose it is.

In rejection mode, too, whose drafts are verified, and how many, depends on the tokens before them alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from operator import mul

from paceline.drafters.evidence import Evidence, Experience, agreeing
from paceline.drafters.interface import Ask, Drafter, DraftSession, FeatureDrafter, Features
from paceline.drafters.ngram import Lookup, NgramDrafter
from paceline.speculation.messages import Proposal
from paceline.speculation.payoff import DrafterRecord, Load, Payoff

NAME = "auto"


@dataclass(slots=True)
class _Asked:
    """A question the model was asked, until the text that followed judges its answer."""

    base: int
    asked: int
    drafts: tuple[int, ...]
    took_s: float
    load: Load


@dataclass(slots=True)
class _Session:
    """A session that leaves the choice to us. Everything learned of it."""

    session: DraftSession
    evidence: Evidence
    payoff: Payoff  # of asking the model
    asked: _Asked | None = None

    def settle(self, length: int) -> None:
        """Judge what was drafted by the first ``length`` tokens of the text."""
        text, asked = self.session.tokens, self.asked
        self.evidence.settle(text, length)
        if asked is None or length <= asked.base:
            return
        accepted = agreeing(asked.drafts, text, asked.base, length)
        known = length - asked.base
        self.payoff.observe(
            asked=asked.asked,
            drafted=len(asked.drafts),
            verified=len(asked.drafts) if accepted < known else accepted,
            accepted=accepted,
            draft_s=asked.took_s,
            missed=False,
            load=asked.load,
        )
        self.asked = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be done about one ask: ``count`` tokens of the lookup, or the model asked for ``model`` tokens."""

    ask: Ask
    found: Lookup
    chances: tuple[float, ...]
    count: int
    model: int


class ChoiceDrafter:
    """See SharedDrafter: sessions that name the model alone are served by the model alone.

    Args:
        model: drafts what lookup does not; driven by this drafter alone.
        lookup: the other one, likewise.
        clock: seconds, for what the model's drafts cost.
    """

    name = NAME

    def __init__(self, model: Drafter, lookup: NgramDrafter, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._model, self._lookup, self._clock = model, lookup, clock
        self._record, self._experience = DrafterRecord(), Experience()
        self._sessions: dict[str, _Session] = {}

    @property
    def model_id(self) -> str:
        """See Drafter. A proposal of lookup says so itself."""
        return self._model.model_id

    @property
    def needs_features(self) -> bool:
        return self._model.needs_features

    @property
    def others(self) -> dict[str, str]:
        """See SharedDrafter."""
        return {self._model.name: self._model.model_id}

    def open(self, session: DraftSession) -> None:
        if self._sessions.pop(session.session_id, None) is not None:
            self._lookup.close(session.session_id)
        self._model.open(session)
        if session.drafter == self.name:
            self._lookup.open(session)
            payoff = Payoff(self._record)
            self._sessions[session.session_id] = _Session(session, Evidence(self._experience), payoff)

    def close(self, session_id: str) -> None:
        self._model.close(session_id)
        if self._sessions.pop(session_id, None) is not None:
            self._lookup.close(session_id)

    def propose(self, asks: Sequence[Ask]) -> list[Proposal]:
        mine = [ask for ask in asks if ask.session_id in self._sessions]
        looked_up = zip(mine, self._lookup.look_up(mine), strict=True)
        plans = {ask.session_id: self._plan(ask, found, len(mine)) for ask, found in looked_up}
        questions = [ask for ask in asks if ask.session_id not in plans]
        questions += [replace(plan.ask, max_tokens=plan.model) for plan in plans.values() if plan.model]
        answers = self._ask_model(questions)
        return [answers[ask.session_id] if ask.session_id in answers else _cut(plans[ask.session_id]) for ask in asks]

    def _plan(self, ask: Ask, found: Lookup, sharing: int) -> _Plan:
        state = self._sessions[ask.session_id]
        state.settle(ask.base_len)
        tokens = found.proposal.tokens
        state.evidence.made(ask.base_len, tokens, found.matched)
        chances = state.evidence.chances(found.matched, len(tokens))
        count, gain = _worth(chances, ask)
        load = _load(ask, sharing)
        model = state.payoff.choose(ask.max_tokens, load)
        if model and count and gain >= state.payoff.value(model, load):
            model = 0
        return _Plan(ask, found, chances, count, model)

    def _ask_model(self, questions: Sequence[Ask]) -> dict[str, Proposal]:
        if not questions:
            return {}
        started = self._clock()
        answers = self._model.propose(questions)
        took_s = self._clock() - started
        out = {}
        for ask, answer in zip(questions, answers, strict=True):
            state = self._sessions.get(ask.session_id)
            out[ask.session_id] = answer
            if state is not None:
                load = _load(ask, len(questions))
                state.asked = _Asked(ask.base_len, ask.max_tokens, answer.tokens, took_s, load)
                out[ask.session_id] = self._with_chances(answer, state.payoff)
        return out

    @staticmethod
    def _with_chances(answer: Proposal, payoff: Payoff) -> Proposal:
        return answer if answer.confidence else replace(answer, confidence=payoff.chances(len(answer.tokens)))


class FeatureChoiceDrafter(ChoiceDrafter):
    """See FeatureDrafter: the model reads the target's hidden states. Where they are missing, lookup goes on."""

    def __init__(
        self, model: FeatureDrafter, lookup: NgramDrafter, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__(model, lookup, clock=clock)
        self._features = model

    @property
    def projector(self) -> str:
        """See FeatureDrafter."""
        return self._features.projector

    @property
    def feature_width(self) -> int:
        """See FeatureDrafter."""
        return self._features.feature_width

    def feed(self, features: Sequence[Features]) -> None:
        """See FeatureDrafter."""
        self._features.feed(features)

    def forgotten(self) -> frozenset[str]:
        """See FeatureDrafter."""
        return self._features.forgotten()


def chooser(model: Drafter, lookup: NgramDrafter, *, clock: Callable[[], float] = time.perf_counter) -> ChoiceDrafter:
    """The drafter ``auto`` over a model's drafter, of whichever kind that is."""
    if isinstance(model, FeatureDrafter):
        return FeatureChoiceDrafter(model, lookup, clock=clock)
    return ChoiceDrafter(model, lookup, clock=clock)


def _load(ask: Ask, sharing: int) -> Load:
    """What time is worth to the asker: as if alone in a step of one row that commits its token in ``token_s``."""
    return Load(partial(_seconds, ask) if ask.token_s else _unknown, sharing=sharing, priced=True)


def _seconds(ask: Ask, rows: float) -> float:
    return ask.token_s + ask.row_s * (rows - 1)


def _unknown(rows: float) -> float:
    del rows
    return 0.0


def _worth(chances: Sequence[float], ask: Ask) -> tuple[int, float]:
    """How many tokens of a lookup are worth their rows, and the tokens they gain."""
    price = ask.row_s / ask.token_s if ask.token_s else 0.0
    values = list(accumulate((chance - price for chance in accumulate(chances, mul)), initial=0.0))
    best = max(range(len(values)), key=values.__getitem__)
    return best, values[best]


def _cut(plan: _Plan) -> Proposal:
    """The lookup's tokens that are worth it."""
    proposal, count = plan.found.proposal, plan.count
    return replace(
        proposal,
        tokens=proposal.tokens[:count],
        confidence=plan.chances[:count],
        distributions=proposal.distributions[:count],
    )
