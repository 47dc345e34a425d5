"""Whatever happens in whatever order, a session's tokens and text are those of plain decoding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from paceline.engine.interface import StepPlan
from paceline.speculation.errors import Overloaded, StaleLease
from paceline.speculation.messages import Resync, SessionOpen, Verdict, VerifyResult, VerifyTask
from paceline.target.verifier import Served, Verifier

from tests.unit.target_kit import EOS, VOCAB, ScriptedEngine, make_verifier, opening, plain, task

NAMES = tuple("abcde")
CONTEXT = 56
TRUNK = tuple((3 * place + place // 5) % VOCAB for place in range(40))  # prompts often begin alike
PLACES = st.integers(0, len(NAMES) - 1)
SAMPLING = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.3]),
        "seed": st.integers(0, 3),
        "top_k": st.sampled_from([0, 3]),
        "max_tokens": st.integers(1, 20),
        "stop": st.sampled_from([(), ("bcd",), ("ab", "d c")]),
        "stop_token_ids": st.sampled_from([(), (4,)]),
        "ignore_eos": st.booleans(),
    }
)


@dataclass
class Client:
    """What a router knows of one session: the lease, and what its verdicts committed since the answer began."""

    first: SessionOpen
    lease: SessionOpen
    committed: tuple[int, ...] = ()
    text: str = ""
    round_id: int = 0
    sent: VerifyTask | None = None
    ended: bool = False
    lost: bool = False  # the verifier let go of it

    @property
    def since_lease(self) -> tuple[int, ...]:
        return self.committed[len(self.lease.tokens) - self.lease.prompt_len :]


class Rounds(RuleBasedStateMachine):
    verifier: Verifier
    engine: ScriptedEngine

    def __init__(self) -> None:
        super().__init__()
        self.clients: dict[str, Client] = {}
        self.plan: StepPlan | None = None
        self.now = 0.0

    @initialize(step_tokens=st.integers(2, 24), drafts=st.integers(0, 6), kv=st.sampled_from([64, 112, 4096]))
    def begin(self, step_tokens: int, drafts: int, kv: int) -> None:
        engine = ScriptedEngine(kv_tokens=kv, context_length=CONTEXT)
        self.verifier, self.engine = make_verifier(
            engine, step_tokens=step_tokens, max_draft_tokens=drafts, max_sessions=4, session_ttl_s=50
        )

    @rule(
        place=PLACES,
        trunk=st.sampled_from([0, 16, 17, 35, 40]),
        tail=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=14),
        tenant=st.sampled_from(["", "other"]),
        sampling=SAMPLING,
    )
    def open(self, place: int, trunk: int, tail: list[int], tenant: str, sampling: dict[str, Any]) -> None:
        name = NAMES[place]
        if name in self.clients:
            return
        prompt = (*TRUNK[:trunk], *tail)
        source = opening(name, tokens=prompt, router_id=f"r{place % 2}", choice=place, tenant=tenant, **sampling)
        if self.try_open(source):
            self.clients[name] = Client(source, source)

    @rule(place=PLACES, router=st.integers(0, 1))
    def reopen(self, place: int, router: int) -> None:
        client = self.clients.get(NAMES[place])
        if client is None or client.ended:
            return
        tokens = (*client.first.tokens, *client.committed)
        lease = replace(client.first, lease_epoch=client.lease.lease_epoch + 1, router_id=f"r{router}", tokens=tokens)
        if self.try_open(lease):
            client.lease, client.sent, client.round_id, client.lost = lease, None, 0, False

    @rule(place=PLACES)
    def open_twice_or_stale(self, place: int) -> None:
        client = self.clients.get(NAMES[place])
        if client is None or client.lost:
            return
        self.verifier.open(client.lease, self.now)
        try:
            self.verifier.open(replace(client.lease, choice=99), self.now)
        except StaleLease:
            return
        raise AssertionError("another content under the same lease was taken")

    @rule(place=PLACES, right=st.integers(0, 7), wrong=st.lists(st.integers(0, VOCAB + 1), max_size=3))
    def submit(self, place: int, right: int, wrong: list[int]) -> None:
        client = self.clients.get(NAMES[place])
        if client is None or client.ended or client.lost or client.sent is not None:
            return
        ahead = plain(client.first, CONTEXT)[0][len(client.committed) :][:right]
        client.round_id += 1
        client.sent = task(client.lease, client.since_lease, (*ahead, *wrong), round_id=client.round_id)
        self.take(self.verifier.submit(client.lease.router_id, client.sent, self.now))

    @rule(place=PLACES)
    def send_again(self, place: int) -> None:
        client = self.clients.get(NAMES[place])
        if client is not None and client.sent is not None and not client.lost:
            self.take(self.verifier.submit(client.lease.router_id, client.sent, self.now))

    @rule(place=PLACES, how=st.sampled_from(["incarnation", "epoch", "round", "prefix", "router"]))
    def submit_wrongly(self, place: int, how: str) -> None:
        client = self.clients.get(NAMES[place])
        if client is None or (how == "round" and client.sent is not None):
            return
        fresh = task(client.lease, client.since_lease, round_id=client.round_id + 1)
        changes: dict[str, dict[str, Any]] = {
            "incarnation": {"incarnation": "inc-0"},
            "epoch": {"lease_epoch": client.lease.lease_epoch - 1},
            "round": {"round_id": 0},
            "prefix": {"prefix_digest": b"\0" * 8},
            "router": {},
        }
        if how == "round" and client.round_id == 0:
            return
        router = "r9" if how == "router" else client.lease.router_id
        answer = self.verifier.submit(router, replace(fresh, fence=replace(fresh.fence, **changes[how])), self.now)
        assert answer is not None, how
        assert isinstance(answer.outcome, Resync), (how, answer)

    @precondition(lambda self: self.plan is None)
    @rule()
    def begin_step(self) -> None:
        self.plan = self.verifier.plan(self.now)
        assert self.plan is None or self.plan.rows <= self.verifier.limits.step_tokens

    @precondition(lambda self: self.plan is not None)
    @rule(arrives=st.sampled_from([True, True, False]))
    def end_step(self, arrives: bool) -> None:
        assert self.plan is not None
        served = self.verifier.complete(self.plan, self.engine.step(self.plan), self.now)
        if arrives:  # otherwise routers send their rounds again, or open their sessions again a few tokens back
            self.take_all(served)
        self.plan = None

    @precondition(lambda self: self.plan is not None)
    @rule()
    def break_step(self) -> None:
        assert self.plan is not None
        self.take_all(self.verifier.fail(self.plan, self.now))
        self.plan = None

    @rule(place=PLACES)
    def release(self, place: int) -> None:
        client = self.clients.get(NAMES[place])
        if client is not None and not client.lost:
            assert not self.verifier.release(NAMES[place], client.lease.lease_epoch - 1)
            assert self.verifier.release(NAMES[place], client.lease.lease_epoch)
            client.lost, client.sent = True, None

    @rule(router=st.integers(0, 1))
    def lose_router(self, router: int) -> None:
        held = [c for c in self.clients.values() if c.lease.router_id == f"r{router}" and not c.lost]
        assert self.verifier.drop_router(f"r{router}") == len(held)
        for client in held:
            client.lost, client.sent = True, None

    @rule(seconds=st.sampled_from([1.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.verifier.expire(self.now)
        for name, client in self.clients.items():
            client.lost = self.verifier.tokens(name) is None
            assert client.sent is None or not client.lost

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "verifier"):
            return
        self.verifier.check_integrity()
        self.engine.table.check_integrity()
        for name, client in self.clients.items():
            tokens, text = plain(client.first, CONTEXT)
            held = self.verifier.tokens(name)
            assert (held is None) == client.lost, (name, client)
            whole = (*client.first.tokens, *tokens)
            assert held is None or whole[: len(held)] == held, (name, held, whole)
            assert tokens[: len(client.committed)] == client.committed
            assert text.startswith(client.text)
            if client.ended:
                assert (client.committed, client.text) == (tokens, text)

    def teardown(self) -> None:
        """Every answer can still be brought to its end."""
        if self.plan is not None:
            self.end_step(True)
        for place, name in enumerate(NAMES):
            client = self.clients.get(name)
            if client is None:
                continue
            if client.lost:
                for other in NAMES:  # make room
                    self.verifier.release(other, 10**6)
                    if other in self.clients:
                        self.clients[other].lost, self.clients[other].sent = True, None
                self.reopen(place, 0)
            self.finish(place, client)
            self.sound()

    def finish(self, place: int, client: Client) -> None:
        for _ in range(1000):
            if client.ended:
                return
            self.send_again(place)
            self.submit(place, 2, [EOS])
            self.begin_step()
            if self.plan is not None:
                self.end_step(True)
        raise AssertionError(f"{client} does not end")

    def try_open(self, lease: SessionOpen) -> bool:
        try:
            self.verifier.open(lease, self.now)
        except Overloaded:
            return False
        return True

    def take_all(self, served: list[Served]) -> None:
        for each in served:
            if each.result is not None:
                self.take(each.result)

    def take(self, result: VerifyResult | None) -> None:
        if result is None:
            return
        client = self.clients[result.fence.session_id]
        assert client.sent is not None, result
        assert result.fence == client.sent.fence, (result, client)
        client.sent = None
        if isinstance(result.outcome, Verdict):
            client.committed += result.outcome.tokens
            client.text += result.outcome.text
            client.ended = result.outcome.finish is not None
        else:
            client.lost = True


TestRounds = Rounds.TestCase
TestRounds.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
