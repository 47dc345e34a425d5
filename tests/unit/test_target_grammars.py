"""Grammars on their way into a session: compiled beside the rounds, refused by name, bounded in time and number."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import grpc
import pytest
import torch
from paceline.engine.fake import FakeEngine, FakeOptions, fake_tokenizer_files
from paceline.engine.grammar import grammars_of
from paceline.runtime import wire
from paceline.runtime.server import WorkerServer
from paceline.runtime.text import TextCodec
from paceline.speculation.errors import InvalidRequest, Overloaded, Unsupported
from paceline.speculation.messages import SessionOpen
from paceline.speculation.params import Grammar, GrammarKind, SamplingParams
from paceline.target import grammars
from paceline.target.grammars import GrammarDesk
from paceline.target.service import SERVICE_NAME, TargetService, add_to
from paceline.target.sessions import Limits
from paceline.target.verifier import Verifier
from paceline.v1 import target_pb2 as pb
from paceline.v1.target_pb2_grpc import TargetServiceStub
from torch import Tensor

from tests.unit.target_kit import make_verifier, opening, task
from tests.unit.target_service_kit import batch, read, tokens_of

REGEX = Grammar(GrammarKind.REGEX, "(yes|no), [a-z]{3}")


class Anything:
    """A grammar that allows all."""

    def allowed(self, following: Sequence[int]) -> Tensor | None:
        return torch.ones(12, dtype=torch.bool)

    def fitting(self, drafts: Sequence[int]) -> int:
        return len(drafts)

    def forced(self, following: Sequence[int]) -> tuple[int, ...]:
        return ()

    def commit(self, tokens: Sequence[int]) -> None:
        pass


class Gated:
    """A compiler that waits until the gate opens."""

    def __init__(self) -> None:
        self.gate, self.asked = threading.Event(), list[tuple[int, ...]]()

    def state(self, grammar: Grammar, committed: tuple[int, ...]) -> Anything:
        self.asked.append(committed)
        assert self.gate.wait(10)
        return Anything()


def asking(session_id: str = "s", committed: Sequence[int] = (), grammar: Grammar | None = REGEX) -> SessionOpen:
    tokens = (*b"well: ", *committed)
    return SessionOpen(session_id, 1, "r1", tokens, 6, SamplingParams(max_tokens=20, grammar=grammar, temperature=0))


async def test_a_session_without_a_grammar_needs_no_compiler() -> None:
    desk = GrammarDesk(None)
    assert await desk.state(asking(grammar=None)) is None
    with pytest.raises(Unsupported, match=r"grammar\.regex.*no compiler"):
        await desk.state(asking())
    desk.close()


async def test_the_compiler_is_told_of_committed_tokens_and_the_loop_goes_on_meanwhile() -> None:
    compiler = Gated()
    desk = GrammarDesk(compiler)
    state = asyncio.create_task(desk.state(asking(committed=b"yes")))
    await asyncio.sleep(0.02)
    assert not state.done()
    compiler.gate.set()
    assert isinstance(await state, Anything)
    assert compiler.asked == [tuple(b"yes")]
    desk.close()


async def test_a_slow_compilation_is_refused_and_who_waits_behind_it_may_come_back() -> None:
    compiler = Gated()
    desk = GrammarDesk(compiler, limit_s=0.05)
    slow, behind = await asyncio.gather(desk.state(asking("a")), desk.state(asking("b")), return_exceptions=True)
    assert isinstance(slow, InvalidRequest)
    assert slow.field == "grammar.regex"
    assert "within 0.05 s" in str(slow)
    assert isinstance(behind, Overloaded)
    compiler.gate.set()
    desk.close()


async def test_so_many_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "MAX_WAITING", 2)
    compiler = Gated()
    desk = GrammarDesk(compiler)
    taken = [asyncio.create_task(desk.state(asking(name))) for name in "ab"]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 grammars wait"):
        await desk.state(asking("c"))
    compiler.gate.set()
    assert all(isinstance(state, Anything) for state in await asyncio.gather(*taken))
    assert isinstance(await desk.state(asking("c")), Anything)
    desk.close()


def test_a_verifier_refuses_a_grammar_that_nobody_compiled() -> None:
    verifier, _ = make_verifier()
    with pytest.raises(Unsupported, match=r"grammar\.regex: "):
        verifier.open(opening(sampling=SamplingParams(grammar=REGEX)), 0.0)
    assert verifier.sessions == 0


async def test_over_grpc_a_bad_grammar_is_an_error_by_name_and_a_good_one_holds() -> None:
    engine, files = FakeEngine(FakeOptions(seed=2), sleep=None), fake_tokenizer_files()
    eos = engine.info.eos_token_ids
    detokenizer = TextCodec(files).detokenizer
    verifier = Verifier(engine, engine.info, limits=Limits(), incarnation="inc-1", detokenizer=detokenizer)
    compiler = grammars_of(files, eos=eos, vocab_size=engine.info.vocab_size)
    service = TargetService(verifier, engine, pb.TargetDescription(), files, compiler=compiler)
    server = WorkerServer("127.0.0.1", 0, services=(SERVICE_NAME,), add=add_to(service))
    port = await server.start()
    service.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = TargetServiceStub(channel)  # type: ignore[no-untyped-call]
            bad = asking(grammar=Grammar(GrammarKind.JSON_SCHEMA, '{"type": "nope"}'))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Open(wire.to_open(bad), timeout=5)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "grammar.json_schema: expected" in (caught.value.details() or "")
            assert "Invalid type: nope" in (caught.value.details() or "")
            good = asking(committed=b"no, ")
            await stub.Open(wire.to_open(good), timeout=5)
            rounds, committed = stub.Rounds(timeout=20), list[int]()
            while not committed or committed[-1] not in eos:
                await rounds.write(batch(task(good, committed, drafts=b"ab", round_id=len(committed) + 1)))
                results, _ = await read(rounds)
                committed += tokens_of(results[0])
            assert len(committed) == 4
            assert all(ord("a") <= token <= ord("z") for token in committed[:3])
    finally:
        await service.stop()
        await server.stop(0)
