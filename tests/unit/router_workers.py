"""Scripted workers behind real grpc.aio servers: a table instead of a model, a pause instead of a forward pass."""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from paceline.engine.fake_tokenizer import fake_tokenizer_files
from paceline.runtime import text, wire
from paceline.runtime.server import CHANNEL_OPTIONS
from paceline.speculation.acceptance import agree
from paceline.speculation.digest import PrefixDigest
from paceline.speculation.messages import (
    PROTOCOL_VERSION,
    DraftResult,
    Fence,
    Finish,
    FinishReason,
    Proposal,
    Resync,
    ResyncReason,
    SessionOpen,
    StepReport,
    Timing,
    Verdict,
    VerifyResult,
)
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2 as draft
from paceline.v1 import draft_pb2_grpc as draft_grpc
from paceline.v1 import target_pb2 as target
from paceline.v1 import target_pb2_grpc as target_grpc

VOCAB = 258
CONTEXT = 4096
FILES = fake_tokenizer_files()
TOKENIZER = text.fingerprint(FILES)


def next_token(tokens: Sequence[int], seed: int) -> int:
    """What the scripted target says after a prefix: a letter, repeating itself often."""
    digest = hashlib.blake2b(bytes(str((tuple(tokens[-2:]), len(tokens) % 7, seed)), "ascii"), digest_size=2).digest()
    return 97 + int.from_bytes(digest) % 26


def plain(prompt: Sequence[int], count: int, seed: int) -> tuple[int, ...]:
    """Plain decoding by the scripted target."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, seed))
    return tuple(tokens[len(prompt) :])


@dataclass
class Held:
    opening: SessionOpen
    tokens: list[int]


class Scripted(ABC):
    """What both kinds share: a server on a port of its own, sessions, a log of what came."""

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.sessions: dict[str, Held] = {}
        self.released: list[str] = []
        self.message_sizes: list[int] = []  # sessions per round message received
        self.server: grpc.aio.Server | None = None
        self.address = ""

    async def start(self, port: int = 0) -> str:
        self.server = grpc.aio.server(options=CHANNEL_OPTIONS)
        self.register(self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port(f'127.0.0.1:{port}')}"
        await self.server.start()
        return self.address

    @abstractmethod
    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer to the server."""

    async def kill(self) -> None:
        if self.server is not None:
            await self.server.stop(None)
            self.server = None
        self.sessions.clear()

    async def Open(self, request: Any, context: Any) -> Any:  # noqa: N802
        opening = wire.from_open(request)
        self.sessions[opening.session_id] = Held(opening, list(opening.tokens))
        return common.OpenResponse(incarnation=self.incarnation)

    async def Release(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.released.append(request.session_id)
        return common.ReleaseResponse(released=self.sessions.pop(request.session_id, None) is not None)

    def refusal(self, fence: Fence) -> Resync | None:
        held = self.sessions.get(fence.session_id)
        if held is None or held.opening.lease_epoch != fence.lease_epoch:
            return Resync(ResyncReason.UNKNOWN_SESSION)
        if PrefixDigest(held.tokens).value != fence.prefix_digest:
            return Resync(ResyncReason.PREFIX_MISMATCH, len(held.tokens))
        return None


@dataclass
class TargetScript:
    """How a scripted target behaves."""

    step_s: float = 0.002
    model_id: str = "scripted"
    numerics_class: str = "class-a"
    max_sessions: int = 256
    silent: bool = False  # takes rounds and never answers
    tokenizer_fingerprint: str = TOKENIZER
    overloaded: bool = False


class ScriptedTarget(Scripted, target_grpc.TargetServiceServicer):
    """One step at a time, for everything that waits."""

    def __init__(self, script: TargetScript | None = None, incarnation: str = "t-1") -> None:
        super().__init__(incarnation)
        self.script = script or TargetScript()

    def register(self, server: grpc.aio.Server) -> None:
        target_grpc.add_TargetServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Describe(self, request: Any, context: Any) -> Any:  # noqa: N802
        return target.TargetDescription(
            protocol_version=PROTOCOL_VERSION,
            incarnation=self.incarnation,
            limits=common.WorkerLimits(max_sessions=self.script.max_sessions, max_draft_tokens=32),
            model=common.ModelDescription(
                model_id=self.script.model_id,
                fingerprint="f" * 64,
                numerics_class=self.script.numerics_class,
                vocab_size=VOCAB,
                context_length=CONTEXT,
                tokenizer_fingerprint=self.script.tokenizer_fingerprint,
                eos_token_ids=[257],
            ),
        )

    async def Open(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.script.overloaded:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("paceline-retry-after-ms", "700"),))
        return await super().Open(request, context)

    async def FetchTokenizer(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        for name, data in FILES.items():
            yield common.FileChunk(name=name, data=data, last=True)

    async def Rounds(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        waiting: list[Any] = []
        came = asyncio.Event()

        async def read() -> None:
            async for message in requests:
                self.message_sizes.append(len(message.tasks))
                waiting.extend(wire.from_verify_task(task) for task in message.tasks)
                came.set()

        reader = asyncio.get_running_loop().create_task(read())
        try:
            while True:
                await came.wait()
                came.clear()
                tasks, waiting[:] = list(waiting), []
                await asyncio.sleep(self.script.step_s)
                if self.script.silent:
                    continue
                results = [wire.to_verify_result(self.verify(task)) for task in tasks]
                rows = sum(1 + len(task.proposal.tokens) for task in tasks)
                step = StepReport(1, len(tasks), rows, int(self.script.step_s * 1e6))
                yield target.VerifyBatchResult(results=results, step=wire.to_step(step))
        finally:
            reader.cancel()

    def verify(self, task: Any) -> VerifyResult:
        refusal = self.refusal(task.fence)
        if refusal is not None:
            return VerifyResult(task.fence, refusal)
        held = self.sessions[task.fence.session_id]
        sampling, prompt_len = held.opening.sampling, held.opening.prompt_len
        samples: list[int] = []
        for drafted in (*task.proposal.tokens, None):
            samples.append(next_token([*held.tokens, *task.proposal.tokens[: len(samples)]], sampling.seed))
            del drafted
        agreement = agree(task.proposal.tokens, samples)
        left = sampling.max_tokens - (len(held.tokens) - prompt_len)
        tokens = agreement.tokens[:left]
        held.tokens.extend(tokens)
        done = len(held.tokens) - prompt_len >= sampling.max_tokens
        verdict = Verdict(
            tokens=tokens,
            sources=agreement.sources[:left],
            verify_len=len(task.proposal.tokens),
            accepted=agreement.accepted,
            text=bytes(tokens).decode(),
            finish=Finish(FinishReason.LENGTH) if done else None,
            verifier_model_id=self.script.model_id,
        )
        residence = int(self.script.step_s * 1e6)
        return VerifyResult(task.fence, verdict, Timing(0, residence, residence))


@dataclass
class DraftScript:
    """How a scripted draft worker behaves."""

    delay_s: float = 0.0
    wrong_every: int = 5  # every so many positions it guesses wrong
    silent: bool = False
    drafters: tuple[str, ...] = ("ngram", "model")
    tokenizer_fingerprint: str = TOKENIZER
    resync_once: set[str] = field(default_factory=set)  # sessions it forgets


class ScriptedDraft(Scripted, draft_grpc.DraftServiceServicer):
    """Guesses what the scripted target will say."""

    def __init__(self, script: DraftScript | None = None, incarnation: str = "d-1") -> None:
        super().__init__(incarnation)
        self.script = script or DraftScript()

    def register(self, server: grpc.aio.Server) -> None:
        draft_grpc.add_DraftServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Describe(self, request: Any, context: Any) -> Any:  # noqa: N802
        model = common.ModelDescription(model_id="guess", tokenizer_fingerprint=self.script.tokenizer_fingerprint)
        return draft.DraftDescription(
            protocol_version=PROTOCOL_VERSION,
            incarnation=self.incarnation,
            limits=common.WorkerLimits(max_sessions=256, max_draft_tokens=32),
            drafters=[draft.DrafterDescription(name=name, model=model) for name in self.script.drafters],
            default_drafter=self.script.drafters[0],
        )

    async def Rounds(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for message in requests:
            self.message_sizes.append(len(message.tasks))
            if self.script.silent:
                continue
            await asyncio.sleep(self.script.delay_s)
            results = [wire.to_draft_result(self.propose(wire.from_draft_task(task))) for task in message.tasks]
            yield draft.DraftBatchResult(results=results)

    def propose(self, task: Any) -> DraftResult:
        held = self.sessions.get(task.fence.session_id)
        if task.fence.session_id in self.script.resync_once:
            self.script.resync_once.discard(task.fence.session_id)
            self.sessions.pop(task.fence.session_id, None)
            return DraftResult(task.fence, Resync(ResyncReason.UNKNOWN_SESSION))
        if held is not None:
            held.tokens[task.append_from :] = task.appended
        refusal = self.refusal(task.fence)
        if refusal is not None or held is None:
            return DraftResult(task.fence, refusal or Resync(ResyncReason.UNKNOWN_SESSION))
        tokens = list(held.tokens)
        for _ in range(task.max_draft_tokens):
            token = next_token(tokens, held.opening.sampling.seed)
            tokens.append(token if len(tokens) % self.script.wrong_every else 97 + (token - 96) % 26)
        return DraftResult(task.fence, Proposal(tuple(tokens[len(held.tokens) :]), held.opening.drafter, "guess"))
