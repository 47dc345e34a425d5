"""A scripted GenerationService over a real socket, and one face for both clients. No tests of its own.

The answer is a fixed list of tokens; token i has the text ``t{i} ``. Rounds commit 3, 1, 2, 3, 1, 2 … tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc
from paceline.v1 import common_pb2, generation_pb2
from paceline.v1.generation_pb2_grpc import GenerationServiceServicer, add_GenerationServiceServicer_to_server
from paceline_client import AsyncClient, AsyncStream, Chunk, Client, Generation, Model, Stream

PROMPT = [11, 12, 13]
ANSWER = list(range(100, 112))
TEXT = "".join(f"t{i} " for i in range(len(ANSWER)))
_ROUNDS = (
    (common_pb2.TOKEN_SOURCE_ACCEPTED, common_pb2.TOKEN_SOURCE_ACCEPTED, common_pb2.TOKEN_SOURCE_CORRECTED),
    (common_pb2.TOKEN_SOURCE_TARGET_ONLY,),
    (common_pb2.TOKEN_SOURCE_ACCEPTED, common_pb2.TOKEN_SOURCE_BONUS),
)
Response = generation_pb2.GenerateResponse


@dataclass(frozen=True)
class Act:
    """How the server plays one Generate call."""

    tokens: int | None = None  # of this stream; then it breaks. None: to the end
    code: grpc.StatusCode | None = grpc.StatusCode.UNAVAILABLE  # how it breaks; None ends it well, without Completed
    details: str = "scripted"
    trailing: tuple[tuple[str, str], ...] = ()
    start: bool = True  # whether Started is sent
    hang: bool = False  # instead of breaking, wait until cancelled
    numerics_class: str = "class-a"
    repeat: int = 0  # send this many tokens again that the client has
    skip: int = 0  # leave out this many tokens: a gap
    responses: tuple[Response, ...] | None = None  # exactly these, then break


def started(**fields: Any) -> Response:
    """A Started, ordinary but for ``fields``."""
    usual: dict[str, Any] = {
        "request_id": "r-1",
        "session_id": "s-1",
        "model": "demo",
        "numerics_class": "class-a",
        "prompt_token_ids": PROMPT,
        "seed": 7,
        "lease_epoch": 1,
        "fingerprint": "f" * 64,
    }
    return Response(started=generation_pb2.Started(**{**usual, **fields}))


def tokens_at(index: int, sources: Sequence[int], *, round_id: int = 1, lease_epoch: int = 1) -> Response:
    """A round of ANSWER from ``index`` on."""
    target_only = common_pb2.TOKEN_SOURCE_TARGET_ONLY in sources
    accepted = sources.count(common_pb2.TOKEN_SOURCE_ACCEPTED)
    message = generation_pb2.Tokens(
        index=index,
        token_ids=ANSWER[index : index + len(sources)],
        proposer_model_id="" if target_only else "draft-model",
        verifier_model_id="target-model",
        text="".join(f"t{i} " for i in range(index, index + len(sources))),
        round_id=round_id,
        drafter="" if target_only else "ngram",
        drafted=0 if target_only else 3,
        verified=0 if target_only else 2,
        accepted=accepted,
        lease_epoch=lease_epoch,
    )
    message.sources.extend(sources)  # type: ignore[arg-type]
    return Response(tokens=message)


def completed(rounds: Sequence[generation_pb2.Tokens]) -> Response:
    """The end; the totals are of this stream's rounds alone, as a router that took over knows them."""
    verify = [each for each in rounds if each.verified]
    sources = [source for each in rounds for source in each.sources]
    message = generation_pb2.Completed(
        finish=common_pb2.Finish(reason=common_pb2.FINISH_REASON_STOP, stop_token_id=2),
        usage=generation_pb2.Usage(prompt_tokens=len(PROMPT), completion_tokens=len(ANSWER)),
        speculation=generation_pb2.SpeculationMetrics(
            rounds=len(rounds),
            verify_rounds=len(verify),
            drafted_tokens=sum(each.drafted for each in rounds),
            verified_tokens=sum(each.verified for each in rounds),
            accepted_tokens=sources.count(common_pb2.TOKEN_SOURCE_ACCEPTED),
            corrected_tokens=sources.count(common_pb2.TOKEN_SOURCE_CORRECTED),
            bonus_tokens=sources.count(common_pb2.TOKEN_SOURCE_BONUS),
            target_only_tokens=sources.count(common_pb2.TOKEN_SOURCE_TARGET_ONLY),
            per_round_verified=[each.verified for each in verify],
            per_round_accepted=[each.accepted for each in verify],
            router_us=50,
        ),
    )
    return Response(completed=message)


class FakeRouter(GenerationServiceServicer):  # generated code has no types
    """Plays an Act per call, and the plain answer once they are used up."""

    def __init__(self, *acts: Act) -> None:
        self.acts = list(acts)
        self.requests: list[generation_pb2.GenerateRequest] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.time_left: list[float] = []
        self.cancelled = asyncio.Event()
        self.hanging = asyncio.Event()
        self.model_failures: list[grpc.StatusCode] = []

    async def Generate(  # noqa: N802  # the name on the wire
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Response]:
        """Play the next act."""
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.time_left.append(context.time_remaining())
        act = self.acts.pop(0) if self.acts else Act()
        try:
            for response in self.play(request, act):
                yield response
            if act.hang:
                self.hanging.set()
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        broken = act.tokens is not None or act.responses is not None or not act.start
        if broken and act.code is not None:
            await context.abort(act.code, act.details, act.trailing)

    async def ListModels(  # noqa: N802  # the name on the wire
        self, request: generation_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> generation_pb2.ListModelsResponse:
        """One model, after the failures asked for."""
        self.metadata.append(dict(context.invocation_metadata() or ()))
        if self.model_failures:
            await context.abort(self.model_failures.pop(0), "scripted")
        model = generation_pb2.ModelInfo(
            id="demo", fingerprint="f", numerics_class="class-a", context_length=2048, drafters=["ngram"], targets=1
        )
        return generation_pb2.ListModelsResponse(models=[model])

    def play(self, request: generation_pb2.GenerateRequest, act: Act) -> list[Response]:
        """What a stream carries before it breaks."""
        if act.responses is not None:
            return list(act.responses)
        if not act.start:
            return []
        resume = request.resume
        epoch = resume.lease_epoch + 1
        out = [
            started(
                lease_epoch=epoch,
                numerics_class=act.numerics_class,
                class_changed=bool(resume.numerics_class) and resume.numerics_class != act.numerics_class,
            )
        ]
        at = len(resume.committed_token_ids) - act.repeat + act.skip
        end = len(ANSWER) if act.tokens is None else min(len(ANSWER), at + act.tokens)
        rounds: list[generation_pb2.Tokens] = []
        while at < end:
            sources = _ROUNDS[len(rounds) % 3][: end - at]
            out.append(tokens_at(at, sources, round_id=len(rounds) + 1, lease_epoch=epoch))
            rounds.append(out[-1].tokens)
            at += len(sources)
        if act.tokens is None:
            out.append(completed(rounds))
        return out


class Server:
    """A FakeRouter on a port of its own, in an ``async with``."""

    def __init__(self, router: FakeRouter) -> None:
        self.router = router
        self.address = ""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_GenerationServiceServicer_to_server(router, self._server)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> Self:
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Drop every call and every connection."""
        await self._server.stop(None)


class AnyStream:
    """A Stream (read in threads) or an AsyncStream, awaited alike."""

    def __init__(self, stream: Stream | AsyncStream) -> None:
        self.inner = stream

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.inner.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if isinstance(self.inner, AsyncStream):
            return await anext(self.inner)
        chunk = await asyncio.to_thread(next, self.inner, None)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def result(self) -> Generation:
        """The whole answer."""
        if isinstance(self.inner, AsyncStream):
            return await self.inner.result()
        return await asyncio.to_thread(self.inner.result)


class AnyClient:
    """A Client or an AsyncClient, awaited alike. Waits between attempts are recorded, not waited."""

    def __init__(self, kind: str, address: str | Sequence[str] | None, **options: Any) -> None:
        self.waits: list[float] = []
        self.on_wait: Callable[[], None] = lambda: None
        self.inner: Client | AsyncClient
        if kind == "sync":
            self.inner = Client(address, sleep=self._wait, **options)
        else:
            self.inner = AsyncClient(address, sleep=self._async_wait, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the client."""
        if isinstance(self.inner, AsyncClient):
            await self.inner.close()
        else:
            await asyncio.to_thread(self.inner.close)

    async def generate(self, prompt: Any = "hello", **options: Any) -> Generation:
        """As the client's own."""
        if isinstance(self.inner, AsyncClient):
            return await self.inner.generate(prompt, **options)
        return await asyncio.to_thread(self.inner.generate, prompt, **options)

    def stream(self, prompt: Any = "hello", **options: Any) -> AnyStream:
        """As the client's own."""
        return AnyStream(self.inner.stream(prompt, **options))

    async def models(self) -> tuple[Model, ...]:
        """As the client's own."""
        if isinstance(self.inner, AsyncClient):
            return await self.inner.models()
        return await asyncio.to_thread(self.inner.models)

    def _wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.on_wait()

    async def _async_wait(self, seconds: float) -> None:
        self._wait(seconds)


def whole(answer: Generation) -> None:
    """Nothing lost, nothing repeated."""
    assert answer.token_ids == tuple(ANSWER)
    assert [token.index for token in answer.tokens] == list(range(len(ANSWER)))
    assert answer.text == TEXT
