"""Whatever happens in whatever order, shared pages hold the tokens their key says, and no budget is exceeded."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize
from paceline.engine.fake import FakeEngine, FakeOptions
from paceline.engine.interface import KvRequest, Slice
from paceline.engine.pages import PAGE, BlockTable
from paceline.engine.prefix import salt_of

from tests.unit.kv_machine import KvMachine, plan_of

Written = tuple[str, tuple[int, ...]]


class Pages(KvMachine):
    """A slot holds what KV depends on: all tokens up to its position. And who wrote it: tenants must not mix."""

    @initialize(pages=st.sampled_from([4, 9, 14, 40]))
    def begin(self, pages: int) -> None:
        self.table = BlockTable(pages * PAGE + 5)
        assert self.table.tokens == pages * PAGE
        self.slots: list[Written | None] = [None] * ((pages + 1) * PAGE)

    def admit(self, request: KvRequest) -> int | None:
        admission = self.table.admit(request, salt_of("class", request.tenant, page=PAGE))
        if admission is None:
            return None
        for page in admission.fresh:  # as KVStore.clear does: nothing that is shared may be among them
            self.slots[page * PAGE : (page + 1) * PAGE] = [None] * PAGE
        return admission.reused

    def feed(self, piece: Slice, whole: tuple[int, ...]) -> None:
        self.table.begin(plan_of(piece))
        pages = self.table.holding(piece.session_id).pages
        tenant = self.clients[piece.session_id].tenant
        for at in range(piece.start, piece.end):
            self.slots[pages[at // PAGE] * PAGE + at % PAGE] = (tenant, whole[: at + 1])
        self.table.commit(plan_of(piece))

    def publish(self, name: str, tokens: tuple[int, ...], length: int) -> None:
        self.table.publish(name, tokens, length)

    def free(self, name: str, keep: bool) -> None:
        self.table.free(name, keep=keep)

    def check_held(self, name: str, tokens: tuple[int, ...]) -> None:
        pages, tenant = self.table.holding(name).pages, self.clients[name].tenant
        for at in range(len(tokens)):
            assert self.slots[pages[at // PAGE] * PAGE + at % PAGE] == (tenant, tokens[: at + 1]), (name, at)


class Fake(KvMachine):
    """The same of the fake engine."""

    @initialize(pages=st.sampled_from([4, 9, 40]))
    def begin(self, pages: int) -> None:
        self.engine = FakeEngine(FakeOptions(vocab_size=11), kv_tokens=pages * PAGE, sleep=None)
        self.table = self.engine._table

    def admit(self, request: KvRequest) -> int | None:
        return self.engine.admit(request)

    def feed(self, piece: Slice, whole: tuple[int, ...]) -> None:
        logits = self.engine.forward(plan_of(piece))
        if piece.samples:
            assert logits[-1].equal(self.engine.next_logits(whole))

    def publish(self, name: str, tokens: tuple[int, ...], length: int) -> None:
        self.engine.publish(name, tokens, length)

    def free(self, name: str, keep: bool) -> None:
        self.engine.free(name, keep=keep)

    def check_held(self, name: str, tokens: tuple[int, ...]) -> None:
        assert self.engine.held(name)[: len(tokens)] == tokens


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestFake = Fake.TestCase
TestFake.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
