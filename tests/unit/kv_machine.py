"""Sessions come, grow, roll back, are opened again and leave in any order; whoever holds a page holds the right tokens.

The machine knows what each session fed. What stands behind the pages is the subclass's: tokens here, a real model's KV
in tests/congruence.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import takewhile

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from paceline.engine.interface import KvRequest, Slice, StepPlan
from paceline.engine.pages import PAGE, BlockTable
from paceline.speculation.params import SamplingParams

NAMES = tuple("abcde")
WHO = st.sampled_from(NAMES)
SAMPLING = SamplingParams(temperature=0.0)
TRUNKS = tuple(tuple((7 * trunk + 3 * place) % 11 for place in range(4 * PAGE)) for trunk in range(2))


@dataclass
class Client:
    """What is known of a session: its committed tokens, and how many of them are fed."""

    tokens: tuple[int, ...]
    tenant: str
    fed: int
    max_len: int


class KvMachine(RuleBasedStateMachine):
    """Subclasses set ``table`` and say what admitting, feeding, publishing and freeing is."""

    table: BlockTable

    def __init__(self) -> None:
        super().__init__()
        self.clients: dict[str, Client] = {}
        self.reused = 0

    @abstractmethod
    def admit(self, request: KvRequest) -> int | None:
        """See Engine."""

    @abstractmethod
    def feed(self, piece: Slice, whole: tuple[int, ...]) -> None:
        """Run a step; ``whole`` are all tokens of the session up to its end."""

    @abstractmethod
    def publish(self, name: str, tokens: tuple[int, ...], length: int) -> None:
        """See Engine."""

    @abstractmethod
    def free(self, name: str, keep: bool) -> None:
        """See Engine."""

    @abstractmethod
    def check_held(self, name: str, tokens: tuple[int, ...]) -> None:
        """The session's pages hold these tokens."""

    @rule(
        name=WHO,
        trunk=st.sampled_from(TRUNKS),
        length=st.sampled_from([0, 3, PAGE, PAGE + 1, 2 * PAGE + 5, 4 * PAGE]),
        tail=st.lists(st.integers(0, 10), min_size=1, max_size=5),
        room=st.integers(1, 2 * PAGE),
        who=st.sampled_from([("", True), ("", True), ("other", True), ("", False)]),
    )
    def open(
        self, name: str, trunk: tuple[int, ...], length: int, tail: list[int], *, room: int, who: tuple[str, bool]
    ) -> None:
        """A session that is new, or opened again with another text; who: its tenant, and whether it shares."""
        tokens, (tenant, share) = (*trunk[:length], *tail), who
        held = self.clients.get(name)
        kept = 0
        if held is not None:
            pairs = zip(held.tokens[: held.fed], tokens[:-1], strict=False)
            kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        request = KvRequest(name, tokens, len(tokens) + room, tenant, kept=kept, share=share)
        self.take(request, tenant)

    @rule(name=WHO, back=st.integers(0, PAGE + 3), more=st.integers(0, PAGE))
    def reopen(self, name: str, back: int, more: int) -> None:
        """The same text under a new lease, some tokens back, perhaps with more room."""
        client = self.clients.get(name)
        if client is None:
            return
        tokens = client.tokens[: max(1, len(client.tokens) - back)]
        kept = min(client.fed, len(tokens) - 1)
        self.take(KvRequest(name, tokens, client.max_len + more, client.tenant, kept=kept), client.tenant)

    def take(self, request: KvRequest, tenant: str) -> None:
        before = {name: list(self.table.holding(name).pages) for name in self.clients}
        reused = self.admit(request)
        if reused is None:
            assert before == {name: list(self.table.holding(name).pages) for name in self.clients}
            return
        assert request.kept <= reused or reused % PAGE == 0
        assert reused < len(request.tokens)
        self.reused += reused
        self.clients[request.session_id] = Client(tuple(request.tokens), tenant, reused, request.max_len)

    @rule(
        name=WHO,
        drafts=st.lists(st.integers(0, 10), max_size=6),
        accepted=st.integers(0, 6),
        most=st.sampled_from([3, PAGE, 5 * PAGE]),
    )
    def step(self, name: str, drafts: list[int], accepted: int, most: int) -> None:
        """Feed what is missing, a chunk of it or all with drafts, some of which are accepted."""
        client = self.clients.get(name)
        if client is None or client.fed == client.max_len:
            return
        missing = client.tokens[client.fed :]
        caught_up = len(missing) <= most
        room = client.max_len - len(client.tokens)
        offered = tuple(drafts[: max(0, room - 1)]) if caught_up else ()
        fed = (*missing[:most], *offered)
        piece = Slice(name, client.fed, fed, len(offered) + 1 if caught_up else 0, SAMPLING, prompt_len=1)
        self.feed(piece, (*client.tokens[: client.fed], *fed))
        client.fed += len(missing[:most])
        if caught_up:
            good = offered[:accepted]
            client.fed += len(good)
            client.tokens = (*client.tokens, *good, (sum(client.tokens) + 1) % 11)[: client.max_len]
        self.publish(name, client.tokens, client.fed)

    @rule(name=WHO, keep=st.sampled_from([True, True, False]))
    def leave(self, name: str, keep: bool) -> None:
        if name in self.clients:
            del self.clients[name]
            self.free(name, keep)

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "table"):
            return
        self.table.check_integrity()
        held = {page for name in self.clients for page in self.table.holding(name).pages}
        assert len(held) * PAGE <= self.table.tokens
        assert self.table.free_tokens == self.table.tokens - len(held) * PAGE
        for name, client in self.clients.items():
            assert self.table.holding(name).reserved >= client.max_len
            self.check_held(name, client.tokens[: client.fed])


def plan_of(piece: Slice) -> StepPlan:
    """A step of one session."""
    return StepPlan(0, (piece,))
