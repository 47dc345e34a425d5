"""Context features in a simulated cluster: streams that delay and break, and a drafter that checks what it is fed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from paceline.drafters.interface import Ask, DraftSession, Features
from paceline.engine.fake import FakeEngine
from paceline.engine.fake_features import HIDDEN_SIZE
from paceline.engine.projection import Projector
from paceline.runtime.wire_features import from_chunk, from_want, to_chunk, to_want
from paceline.speculation.features import FeatureChunk
from paceline.speculation.messages import Proposal, SparseDistribution
from paceline.target.feeds import Rows

from tests.sim.workers import SimDraft, SimTarget
from tests.sim.world import World

WIDTH = 4
PROJECTOR = Projector(
    "sim", (0, 2), torch.arange(8.0 * HIDDEN_SIZE).view(WIDTH, 2 * HIDDEN_SIZE).sin(), torch.ones(WIDTH), 1e-5
)


class CheckedDrafter:
    """Knows the target's table; drafts only on features that are the table's own for the session's very tokens.

    Raises AssertionError if a row is not.
    """

    name = "checked"
    model_id = "checked"
    needs_features = True
    projector = PROJECTOR.fingerprint
    feature_width = WIDTH

    def __init__(self, table: FakeEngine, room: int) -> None:
        self._table, self._room = table, room
        self._sessions: dict[str, DraftSession] = {}
        self._rows: OrderedDict[str, list[bytes]] = OrderedDict()  # least recently asked about first
        self._forgotten: set[str] = set()
        self.drafted = 0  # asks whose features were all there
        self.starved = 0  # the others

    def open(self, session: DraftSession) -> None:
        self.close(session.session_id)
        self._sessions[session.session_id], self._rows[session.session_id] = session, []

    def close(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)
        self._rows.pop(session_id, None)
        self._forgotten.discard(session_id)

    def feed(self, features: Sequence[Features]) -> None:
        for each in features:
            rows = self._rows.get(each.session_id)
            if rows is not None and len(rows) == each.start:
                size = len(each.data) // each.count
                rows += [each.data[at * size : (at + 1) * size] for at in range(each.count)]
        for session_id in list(self._rows):
            if sum(map(len, self._rows.values())) > self._room and self._rows[session_id]:
                self._rows[session_id] = []
                self._forgotten.add(session_id)

    def forgotten(self) -> frozenset[str]:
        out, self._forgotten = frozenset(self._forgotten), set()
        return out

    def propose(self, asks: Sequence[Ask]) -> list[Proposal]:
        return [self._draft(ask) for ask in asks]

    def _draft(self, ask: Ask) -> Proposal:
        self._rows.move_to_end(ask.session_id)
        session, rows = self._sessions[ask.session_id], self._rows[ask.session_id]
        tokens = session.tokens[: ask.base_len]
        for at, row in enumerate(rows[: ask.base_len - 1]):
            expected = self._table.states.features(self.projector, tokens[: at + 1])
            assert row == expected, f"{ask.session_id}: features of position {at} are another text's"
        if len(rows) != ask.base_len - 1:
            self.starved += ask.base_len > session.prompt_len  # before the first verdict there are none
            return Proposal((), self.name, self.model_id)
        self.drafted += 1
        drafts: list[int] = []
        while len(drafts) < ask.max_tokens:
            drafts.append(int(self._table.next_logits([*tokens, *drafts]).argmax()))
        certain = tuple(SparseDistribution((token,), (1.0,)) for token in drafts) if session.sampling.rejects else ()
        return Proposal(tuple(drafts), self.name, self.model_id, distributions=certain)


class FeatureLine:
    """One target's feature stream to one draft worker, made anew when it breaks. Messages keep their order."""

    def __init__(self, world: World, target: SimTarget, draft: SimDraft, breaks: float) -> None:
        self.world, self.target, self.draft, self._breaks = world, target, draft, breaks
        self._stream = 0  # grows with every connection
        self._up = False
        self._waiting = False  # for a next attempt
        self._lives = (0, 0)
        self._arrivals = [0.0, 0.0]  # of the last message each way

    @property
    def name(self) -> str:
        return f"{self.target.address}→{self.draft.address}.{self._stream}"

    def pump(self) -> None:
        """Send what may be sent now."""
        if not self.target.alive:
            return
        if self._up and self._lives != (self.target.life, self.draft.life):
            self._break()
        feeds = self.target.verifier.feeds
        if not self._up:
            if self.draft.address in feeds.addresses and self.draft.alive and not self._waiting:
                self._connect()
            return
        while chunks := feeds.outgoing(self.draft.address):
            for chunk in chunks:
                self._carry(0, partial(self._to_draft, chunk))
        rows = feeds.due(self.draft.address)
        if rows is not None:
            self.world.after(self.world.rng.uniform(0.0001, 0.004), partial(self._gather, self.target.life, rows))

    def answer(self) -> None:
        """Carry back what the draft worker has to say."""
        reply = self.draft.worker.intake.reply(self.name) if self._alive() else None
        if reply is not None:
            wants = [from_want(to_want(want)) for want in reply.wants]
            self._carry(1, partial(self.target.verifier.feeds.credited, self.draft.address, reply.credit, wants))

    def _connect(self) -> None:
        self._up, self._lives = True, (self.target.life, self.draft.life)
        self._stream += 1
        self.world.note(f"{self.name} features stream")
        self.draft.worker.intake.opened(self.name)
        self.target.verifier.feeds.connected(self.draft.address)
        self.answer()

    def _break(self) -> None:
        self.world.note(f"{self.name} features stream broken")
        self._up, self._waiting = False, True
        if self.draft.life == self._lives[1]:
            self.draft.worker.intake.closed(self.name)
        if self.target.life == self._lives[0]:
            self.target.verifier.feeds.lost(self.draft.address)

        def again() -> None:
            self._waiting = False
            self.pump()

        self.world.after(self.world.rng.uniform(0.005, 0.05), again)

    def _gather(self, life: int, rows: Rows) -> None:
        """Rows of the past, read between two steps; by then their session may be gone."""
        if life != self.target.life:
            return
        feeds, engine = self.target.verifier.feeds, self.target.engine
        data = None
        if self.target.verifier.tokens(rows.session_id) is not None:
            located = engine.locate_features(rows.session_id, rows.feed.projector, rows.start, rows.end)
            [data] = engine.read_features([located])
        feeds.gathered(rows, data)
        self.pump()

    def _to_draft(self, chunk: FeatureChunk) -> None:
        self.draft.worker.feed(self.name, from_chunk(to_chunk(chunk)))
        self.draft.work()

    def _carry(self, way: int, act: Callable[[], None]) -> None:
        rng, stream = self.world.rng, self._stream
        if rng.random() < self._breaks:
            self._break()
            return
        self._arrivals[way] = max(self._arrivals[way], self.world.now + rng.uniform(0.0001, 0.003))

        def arrive() -> None:
            if self._up and stream == self._stream and self._alive():
                act()
                self.answer()
                self.pump()

        self.world.after(self._arrivals[way] - self.world.now, arrive)

    def _alive(self) -> bool:
        alive = self.target.alive and self.draft.alive
        return self._up and alive and self._lives == (self.target.life, self.draft.life)
