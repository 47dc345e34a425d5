"""The model drafter: a second, smaller model behind the engine seam.

It samples with the target's sampler, options and noise coordinates, so at any temperature the two draw the same token
wherever their distributions mostly agree. Where the options leave no token, a draft ends. In rejection mode it draws
with noise of its own, from its likeliest tokens, and says from what.

A call runs at most K engine steps, one per draft position, for all sessions at once. Sessions that are behind (a new
prompt, tokens drafted by somebody else) catch up in chunks inside those same steps and start drafting when they are
done: a long prompt uses up its own steps and delays nobody. A session that is still behind after them answers empty
and goes on from there the next time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from paceline.drafters.interface import Ask, DraftSession
from paceline.drafters.pace import Pace
from paceline.drafters.shaping import DraftShaping
from paceline.engine.grammar import Grammars
from paceline.engine.interface import Engine, Slice, StepPlan
from paceline.speculation.messages import Proposal, SparseDistribution
from paceline.speculation.sampling import NOTHING
from paceline.speculation.shaping import Shaping

STEP_TOKENS = 128
RESERVE_TOKENS = 64


@dataclass(slots=True)
class _State:
    """What the engine holds of a session.

    Invariant: held[:agreed] == session.tokens[:agreed]; len(held) <= reserved.
    """

    session: DraftSession
    held: list[int] = field(default_factory=list)  # tokens whose KV the engine holds, drafts included
    agreed: int = 0
    reserved: int = 0  # KV positions
    shaping: Shaping | None = None  # after ``session.tokens`` up to where the last ask stood


@dataclass(slots=True)
class _Run:
    """One ask under way."""

    state: _State
    count: int  # draft tokens wanted
    ends: frozenset[int]  # tokens after which nothing follows
    feed: list[int]  # tokens to be written before the next one can be sampled
    drafts: list[int] = field(default_factory=list)
    stuck: bool = False  # the options leave nothing to draft
    distributions: list[SparseDistribution] = field(default_factory=list)  # rejection mode: of each draft

    @property
    def wants(self) -> bool:
        return len(self.drafts) < self.count and not (self.drafts and self.drafts[-1] in self.ends) and not self.stuck

    def piece(self, rows: int) -> Slice:
        session, shaping = self.state.session, self.state.shaping
        samples = 1 if rows >= len(self.feed) else 0
        return Slice(
            session_id=session.session_id,
            start=len(self.state.held),
            tokens=tuple(self.feed[:rows]),
            samples=samples,
            sampling=session.sampling,
            prompt_len=session.prompt_len,
            choice=session.choice,
            shaping=(shaping.row(self.drafts),) if shaping and samples else (),
            proposes=session.sampling.rejects,
        )

    def take(self, piece: Slice, samples: Sequence[int], distributions: Sequence[SparseDistribution]) -> None:
        self.state.held.extend(piece.tokens)
        self.distributions.extend(distributions)
        drawn = [token for token in samples if token != NOTHING]
        self.stuck = len(drawn) < len(samples)
        self.feed = self.feed[len(piece.tokens) :] + drawn
        self.drafts.extend(drawn)
        if samples:
            self.force()

    def force(self) -> None:
        """Draft what the grammar leaves no choice about: the model need not be asked, it would say the same.

        Not in rejection mode, where a draft comes with what it was drawn from.
        """
        shaping = self.state.shaping
        if shaping is not None and self.wants and not self.state.session.sampling.rejects:
            forced = shaping.forced(self.drafts)[: self.count - len(self.drafts)]
            self.feed = [*self.feed, *forced]
            self.drafts.extend(forced)

    def proposal(self, drafter: str, model_id: str) -> Proposal:
        return Proposal(tuple(self.drafts), drafter, model_id, distributions=tuple(self.distributions))


class ModelDrafter:
    """Drafts with a model.

    The model must read the target's tokens: routers compare tokenizer fingerprints before they pair the two.

    Args:
        engine: driven by this drafter alone.
        grammars: compiles them, so that drafts agree with a target that follows one.
        step_tokens: rows of one step at most.
    """

    name = "model"
    needs_features = False

    def __init__(self, engine: Engine, *, grammars: Grammars | None = None, step_tokens: int = STEP_TOKENS) -> None:
        self._engine = engine
        self._info = engine.info
        self._shaping = DraftShaping(vocab_size=self._info.vocab_size, eos=self._info.eos_token_ids, grammars=grammars)
        self._pace = Pace(engine.cost_curve(), step_tokens)
        self._states: OrderedDict[str, _State] = OrderedDict()  # least recently asked about first
        self._steps = 0

    @property
    def model_id(self) -> str:
        return self._info.model_id

    def open(self, session: DraftSession) -> None:
        state = self._states.get(session.session_id)
        if state is None:
            self._states[session.session_id] = _State(session)
        else:  # a new lease of the same text: whatever agrees with it needn't be computed again
            state.session, state.agreed, state.shaping = session, 0, None

    def close(self, session_id: str) -> None:
        state = self._states.pop(session_id, None)
        if state is not None:
            self._drop_kv(state)

    def propose(self, asks: Sequence[Ask]) -> list[Proposal]:
        """See Drafter. Raises whatever the engine raises, after forgetting the KV state of the sessions asked about."""
        budget_s = self._pace.budget_s(ask.budget_s for ask in asks)
        for ask in asks:
            self._states.move_to_end(ask.session_id)
        busy = {ask.session_id for ask in asks}
        runs = [self._begin(ask, busy) if ask.budget_s >= budget_s else None for ask in asks]
        if not any(ask.budget_s >= budget_s for ask in asks):
            self._pace.refuse()
        try:
            self._draft([run for run in runs if run is not None], budget_s)
        except Exception:
            for ask in asks:
                self._drop_kv(self._states[ask.session_id])
            raise
        empty = Proposal((), self.name, self.model_id)
        return [run.proposal(self.name, self.model_id) if run else empty for run in runs]

    def _begin(self, ask: Ask, busy: set[str]) -> _Run | None:
        """None if the model cannot read the text or has no room for it."""
        state = self._states[ask.session_id]
        session = state.session
        count = min(ask.max_tokens, self._info.context_length - ask.base_len)
        start = min(_common(state.held, session.tokens, ask.base_len, state.agreed), ask.base_len - 1)
        feed = session.tokens[start : ask.base_len]
        if count <= 0 or max(feed) >= self._info.vocab_size or not self._fit(state, ask.base_len + count, busy):
            return None
        state.agreed = start
        del state.held[start:]
        state.shaping = self._shaping.at(session, state.shaping, ask.base_len)
        run = _Run(state, count, self._shaping.ends(session.sampling), feed)
        run.force()
        return run

    def _fit(self, state: _State, length: int, busy: set[str]) -> bool:
        """Reserve room, at the cost of sessions that nobody is asking about, least recently asked about first."""
        if length <= state.reserved:
            return True
        rounded = min(math.ceil(length / RESERVE_TOKENS) * RESERVE_TOKENS, self._info.context_length)
        idle = (key for key, other in self._states.items() if other.reserved and key not in busy)
        session_id = state.session.session_id
        while not self._engine.reserve(session_id, rounded):
            victim = next(idle, None)
            if victim is None:
                return False
            self._drop_kv(self._states[victim])
        state.reserved = rounded
        return True

    def _drop_kv(self, state: _State) -> None:
        self._engine.free(state.session.session_id)
        state.held, state.agreed, state.reserved = [], 0, 0

    def _draft(self, runs: Sequence[_Run], budget_s: float) -> None:
        spent_s = 0.0
        steps = max((run.count for run in runs), default=0)
        for step in range(steps):
            active = sorted((run for run in runs if run.wants), key=lambda run: len(run.feed))
            # Short feeds are drafts and what the last verdict added; they go first, and must not wait for long ones.
            soon = sum(min(len(run.feed), 1 + steps) for run in active)
            rows = self._pace.rows(budget_s - spent_s, steps - step, soon)
            if not active or not rows:
                return
            spent_s += self._step(active, rows)

    def _step(self, active: Iterable[_Run], rows: int) -> float:
        """One engine step of at most ``rows`` rows; returns its duration in seconds."""
        pieces: list[tuple[_Run, Slice]] = []
        for run in active:
            if rows:
                piece = run.piece(rows)
                pieces.append((run, piece))
                rows -= len(piece.tokens)
        self._steps += 1
        result = self._engine.step(StepPlan(self._steps, tuple(piece for _, piece in pieces)))
        for (run, piece), drawn in zip(pieces, result.by_slice(), strict=True):
            run.take(piece, drawn.samples, drawn.distributions)
        self._pace.observe(sum(len(piece.tokens) for _, piece in pieces), result.duration_s)
        return result.duration_s


def _common(held: Sequence[int], tokens: Sequence[int], limit: int, agreed: int) -> int:
    """Length of the common prefix of held and tokens[:limit], of which ``agreed`` is known already."""
    end = min(len(held), limit)
    for position in range(min(agreed, end), end):
        if held[position] != tokens[position]:
            return position
    return end
