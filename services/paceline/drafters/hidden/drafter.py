"""The drafter on the target's hidden states, as it is served: ``dspark``, ``dflash`` and ``eagle3``.

A session's context grows by the features its target sends, each turned into keys and values once; a rejected draft
takes nothing back, for drafts never stay in it. One pass drafts for all sessions asked about. An ask whose
context is not all there (its features are late, lost, or had to be forgotten) is answered empty.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.drafters.hidden.backend import Backend, BlockAsk, Piece
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.drafters.hidden.speaking import Run, Speaker, empty
from paceline.drafters.interface import FEATURE_BYTES, Ask, DraftSession, Features
from paceline.drafters.pace import Pace
from paceline.drafters.shaping import DraftShaping
from paceline.speculation.messages import Proposal
from paceline.speculation.sampling import DrawFast
from paceline.speculation.shaping import Shaping

MAX_BLOCKS = 64  # of one pass
RESERVE_TOKENS = 64
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_WARM_BLOCKS = (1, 2, 4, 8)


@dataclass(slots=True)
class _State:
    """A session. Invariant: its context is that of session.tokens[:length]."""

    session: DraftSession
    length: int = 0
    reserved: int = 0
    shaping: Shaping | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """A network ready to draft, and what goes with it."""

    network: HiddenDrafter | EagleDrafter
    backend: Backend
    projector: str  # its fingerprint
    model_id: str  # what drafts are attributed to
    fast: DrawFast | None = None  # see ``sampling.sample``


class ContextDrafter:
    """See FeatureDrafter. Not thread-safe; torch operations run in the calling thread.

    Args:
        shaping: the target's vocabulary and ends.
        clock: seconds, for what passes cost.
    """

    needs_features = True

    def __init__(
        self, served: Served, shaping: DraftShaping, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        config = served.network.config
        self.name = config.drafter
        self.model_id = served.model_id
        self.projector = served.projector
        self.feature_width = config.hidden_size
        self._size, self._most = config.block_size, config.draft_tokens
        self._backend, self._shaping, self._clock = served.backend, shaping, clock
        self._speaker = Speaker(served.network.target_ids, config.vocab_size, served.fast)
        self._states: OrderedDict[str, _State] = OrderedDict()  # least recently asked about first
        self._forgotten: set[str] = set()
        self._pace = Pace(self._measured(), MAX_BLOCKS)

    def open(self, session: DraftSession) -> None:
        """See Drafter. Its features are awaited from the first on."""
        self.close(session.session_id)
        self._states[session.session_id] = _State(session)

    def close(self, session_id: str) -> None:
        if self._states.pop(session_id, None) is not None:
            self._backend.free(session_id)
        self._forgotten.discard(session_id)

    def length(self, session_id: str) -> int:
        """Context positions held of an opened session."""
        return self._states[session_id].length

    def forgotten(self) -> frozenset[str]:
        """See FeatureDrafter."""
        out, self._forgotten = frozenset(self._forgotten), set()
        return out

    @torch.inference_mode()
    def feed(self, features: Sequence[Features]) -> None:
        """See FeatureDrafter."""
        waiting = list(features)
        while waiting:  # a session's pieces one after the other, those of different sessions together
            now = {each.session_id: each for each in reversed(waiting)}
            waiting = [each for each in waiting if now[each.session_id] is not each]
            self._append([each for each in now.values() if self._follows(each, now.keys())])

    @torch.inference_mode()
    def propose(self, asks: Sequence[Ask]) -> list[Proposal]:
        """See Drafter."""
        for ask in asks:
            self._states.move_to_end(ask.session_id)
        budget_s = self._pace.budget_s(ask.budget_s for ask in asks)
        busy = {ask.session_id for ask in asks}
        runs = [self._begin(ask, busy) if ask.budget_s >= budget_s else None for ask in asks]
        if asks and not any(ask.budget_s >= budget_s for ask in asks):
            self._pace.refuse()
        ready = [run for run in runs if run is not None]
        estimates: list[tuple[float, ...]] = []
        left_s = budget_s
        while len(estimates) < len(ready):
            blocks = self._pace.rows(left_s, 1, len(ready) - len(estimates))
            if not blocks:
                estimates += [()] * (len(ready) - len(estimates))
                break
            part = ready[len(estimates) : len(estimates) + blocks]
            started = self._clock()
            estimates += self._pass(part)
            spent_s = self._clock() - started
            self._pace.observe(len(part), spent_s)
            left_s -= spent_s
        told = iter(estimates)
        none = empty(self.name, self.model_id)
        return [run.proposal(self.name, self.model_id, next(told)) if run else none for run in runs]

    def _pass(self, runs: Sequence[Run]) -> list[tuple[float, ...]]:
        asks = [BlockAsk(run.session.session_id, run.previous, run.base_len - 1, run.session.tokens) for run in runs]
        return self._speaker.speak(self._backend.begin(asks), runs)

    def _begin(self, ask: Ask, busy: Collection[str]) -> Run | None:
        """None if the context is not that of the ask, or there is no room for a block after it."""
        state = self._states[ask.session_id]
        session = state.session
        complete = state.length == ask.base_len - 1 and state.length >= self._backend.least
        if not complete or not self._fit(state, state.length + self._size, busy):
            return None
        state.shaping = self._shaping.at(session, state.shaping, ask.base_len)
        count = min(ask.max_tokens, self._most)
        return Run(session, ask.base_len, count, self._shaping.ends(session.sampling), state.shaping)

    def _follows(self, features: Features, busy: Collection[str]) -> bool:
        """Whether these features go on where the session's context ends, and there is room for them."""
        state = self._states.get(features.session_id)
        if state is None or features.start != state.length:
            return False
        if self._fit(state, features.start + features.count + self._size, busy):
            return True
        self._drop(state)
        return False

    def _append(self, features: Sequence[Features]) -> None:
        if not features:
            return
        states = [self._states[each.session_id] for each in features]
        self._backend.append(
            [
                Piece(each.session_id, each.start, self._rows(each), state.session.tokens)
                for each, state in zip(features, states, strict=True)
            ]
        )
        for each, state in zip(features, states, strict=True):
            state.length += each.count

    def _rows(self, features: Features) -> Tensor:
        assert len(features.data) == features.count * self.feature_width * FEATURE_BYTES[features.dtype], features.start
        flat = torch.frombuffer(bytearray(features.data), dtype=_DTYPES[features.dtype])
        return flat.view(features.count, self.feature_width).to(self._backend.dtype)

    def _fit(self, state: _State, positions: int, busy: Collection[str]) -> bool:
        """Reserve room, at the cost of sessions that are not busy, least recently asked about first."""
        if positions <= state.reserved:
            return True
        rounded = math.ceil(positions / RESERVE_TOKENS) * RESERVE_TOKENS
        others = (other for key, other in self._states.items() if other.reserved and key not in busy)
        while not self._backend.reserve(state.session.session_id, rounded):
            victim = next(others, None)
            if victim is None:
                return False
            self._drop(victim)
        state.reserved = rounded
        return True

    def _drop(self, state: _State) -> None:
        self._backend.free(state.session.session_id)
        state.length = state.reserved = 0
        self._forgotten.add(state.session.session_id)

    @torch.inference_mode()
    def _measured(self) -> list[tuple[int, float]]:
        """Seconds of a pass by its blocks, on made-up contexts; this also warms up."""
        ids = [f"\0{number}" for number in range(_WARM_BLOCKS[-1])]
        features = torch.zeros(1, self.feature_width, dtype=self._backend.dtype)
        ids = [each for each in ids if self._backend.reserve(each, 1 + self._size)]
        for each in ids:
            self._backend.append([Piece(each, 0, features, (0,))])
        curve = []
        for blocks in _WARM_BLOCKS:
            asks = [BlockAsk(each, 0, 1, (0, 0)) for each in ids[:blocks]]
            if len(asks) == blocks:
                curve.append((blocks, min(self._timed(asks) for _ in range(3))))
        for each in ids:
            self._backend.free(each)
        return curve

    def _timed(self, asks: Sequence[BlockAsk]) -> float:
        started = self._clock()
        drafting = self._backend.begin(asks)
        previous, active = torch.zeros(len(asks), dtype=torch.long), range(len(asks))
        for step in range(drafting.steps):
            drafting.logits(step, previous, active).argmax(-1)
        return self._clock() - started
