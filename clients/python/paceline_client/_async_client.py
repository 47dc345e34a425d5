"""The asyncio client: the twin of ``_client``, method for method."""

from __future__ import annotations

import asyncio
import contextlib
import random as random_module
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack, cast

import grpc
from paceline.v1 import generation_pb2
from paceline.v1.generation_pb2_grpc import GenerationServiceStub

from paceline_client._config import CHANNEL_OPTIONS, DEFAULT_TIMEOUT_S, MODELS_TIMEOUT_S, Config
from paceline_client._errors import TRUNCATED, Failure, PacelineError, StreamClosedError, error_of, failure_of
from paceline_client._options import GenerateOptions, build_request, check_timeout, check_traceparent
from paceline_client._resume import Exchange
from paceline_client._retry import Retry, RetryPolicy
from paceline_client._targets import Targets
from paceline_client._types import Chunk, Generation, Model
from paceline_client._view import AnswerView
from paceline_client._wire import models_of

_SYSTEM_RANDOM = random_module.SystemRandom()


class _Server:
    """A channel to one address, and the calls on it."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(address, credentials, CHANNEL_OPTIONS)
        stub = cast(Callable[[grpc.aio.Channel], Any], GenerationServiceStub)(self.channel)  # generated: no types
        self.generate: grpc.aio.UnaryStreamMultiCallable[
            generation_pb2.GenerateRequest, generation_pb2.GenerateResponse
        ] = stub.Generate
        self.list_models: grpc.aio.UnaryUnaryMultiCallable[
            generation_pb2.ListModelsRequest, generation_pb2.ListModelsResponse
        ] = stub.ListModels


def _cancelled_from_outside() -> bool:
    """Whether the running task itself was cancelled; a call cancelled by ``close`` raises the same CancelledError."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class AsyncStream(AnswerView, AsyncIterator[Chunk]):
    """An answer as it comes: iterate for chunks. One task reads; ``close`` may be called from any of the loop.

    The call starts with the first read or on entering the context. Leaving the context early cancels it, and so does
    cancelling the task that reads. A lost server is survived without a token lost or repeated, see ``RetryPolicy``.
    """

    def __init__(
        self,
        exchange: Exchange,
        targets: Targets[_Server],
        metadata: tuple[tuple[str, str], ...],
        sleep: Callable[[float], Awaitable[object]],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(exchange, clock)
        self._targets = targets
        self._metadata = metadata
        self._closing = False
        self._sleep = sleep
        self._call: grpc.aio.UnaryStreamCall[Any, generation_pb2.GenerateResponse] | None = None
        self._target = 0
        self._error: PacelineError | None = None

    async def __aenter__(self) -> Self:
        self._opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __anext__(self) -> Chunk:
        """The next chunk.

        Raises:
            StopAsyncIteration: the answer is complete.
            PacelineError: it failed; reading again raises the same.
        """
        if self._error is not None:
            raise self._error
        try:
            chunk = await self._advance()
        except PacelineError as error:
            self._error = error
            self.close()
            raise
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def result(self) -> Generation:
        """Read to the end; returns the whole answer, what was read before included.

        Raises:
            PacelineError: it failed.
        """
        async for _ in self:
            pass
        return self._exchange.generation(self._clock())

    def close(self) -> None:
        """Cancel the answer if it is not complete. Safe to repeat."""
        self._closing = True
        if self._call is not None:
            self._call.cancel()

    async def _advance(self) -> Chunk | None:
        # Bounded: each turn takes one message of a stream the deadline ends, or one of the attempts allowed.
        while not self._exchange.done:
            response, failure = await self._read()
            if self._closing or self._targets.closed:
                raise self._exchange.closed()
            if response is None:
                await self._recover(failure)
                continue
            chunk = self._exchange.feed(response, self._clock())
            if chunk is not None:
                return chunk
        await self._drain()
        return None

    async def _read(self) -> tuple[generation_pb2.GenerateResponse | None, Failure]:
        try:
            response = await self._opened().read()
        except grpc.aio.AioRpcError as error:
            return None, failure_of(error)
        except asyncio.CancelledError:
            if _cancelled_from_outside() or not (self._closing or self._targets.closed):
                raise
            return None, TRUNCATED
        return (response if isinstance(response, generation_pb2.GenerateResponse) else None), TRUNCATED

    def _opened(self) -> grpc.aio.UnaryStreamCall[Any, generation_pb2.GenerateResponse]:
        if self._call is None:
            if self._closing or self._targets.closed:
                raise self._exchange.closed()
            self._target, server = self._targets.current()
            timeout = self._exchange.time_left_s(self._clock())
            self._call = server.generate(self._exchange.request(), timeout=timeout, metadata=self._metadata)
        return self._call

    async def _recover(self, failure: Failure) -> None:
        delay = self._exchange.failed(failure, self._clock())
        self._targets.failed(self._target)
        self._call = None
        await self._sleep(delay)

    async def _drain(self) -> None:
        """Take the status after Completed, so that the server doesn't see a cancelled call."""
        call, self._call = self._call, None
        if call is not None:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()


class AsyncClient:
    """An asyncio client of Paceline; make it, use it and close it on one event loop.

    Args:
        address: ``host:port``, several separated by commas or in a list: the next one takes over when one is lost.
            Default: the variable PACELINE_ADDRESS, or 127.0.0.1:9000.
        api_key: default: the variable PACELINE_API_KEY; none is sent if that is unset too.
        credentials: TLS; None for plain text.
        timeout: seconds for a whole answer, retries included, unless the call says otherwise.
        retry: how hard to try when a server is lost.
        sleep, random, clock: seams for tests: wait seconds, uniform in [0, 1), monotonic seconds.

    Raises:
        InvalidRequestError: an argument or a variable is malformed.
    """

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random: Callable[[], float] = _SYSTEM_RANDOM.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = Config.load(address, api_key, timeout, retry or RetryPolicy())
        self._sleep = sleep
        self._random = random
        self._clock = clock
        self._targets = Targets([_Server(each, credentials) for each in self._config.addresses])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is under way and close the connections. Safe to repeat."""
        self._targets.closed = True
        for server in self._targets.items:
            await server.channel.close()

    async def generate(
        self, prompt: str | Sequence[int] | None = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Generate an answer and return it whole. ``GenerateOptions`` lists the options.

        Args:
            prompt: text, tokenized as it is, or token ids; None with ``messages``.

        Raises:
            PacelineError: see ``paceline_client._errors`` for the tree.
        """
        async with self.stream(prompt, **options) as stream:
            return await stream.result()

    def stream(self, prompt: str | Sequence[int] | None = None, **options: Unpack[GenerateOptions]) -> AsyncStream:
        """Generate an answer and return it as it comes; use it in an ``async with`` statement.

        Arguments as ``generate``.

        Raises:
            InvalidRequestError: an argument is wrong. All else is raised on reading.
        """
        timeout = options.get("timeout")
        exchange = Exchange(
            build_request(prompt, options),
            policy=self._config.retry,
            timeout_s=self._config.timeout_s if timeout is None else check_timeout(timeout),
            now=self._clock(),
            random=self._random,
        )
        metadata = self._config.metadata(check_traceparent(options.get("traceparent", "")))
        return AsyncStream(exchange, self._targets, metadata, self._sleep, self._clock)

    async def models(self, *, timeout: float = MODELS_TIMEOUT_S) -> tuple[Model, ...]:
        """The models on offer, and how many workers each has.

        Args:
            timeout: seconds, retries included.

        Raises:
            PacelineError: see ``paceline_client._errors`` for the tree.
        """
        deadline = self._clock() + check_timeout(timeout)
        retry = Retry(self._config.retry, self._random)
        for _ in range(self._config.retry.attempts + 1):
            if self._targets.closed:
                break
            index, server = self._targets.current()
            left_s = max(0.0, deadline - self._clock())
            try:
                request = generation_pb2.ListModelsRequest()
                return models_of(await server.list_models(request, timeout=left_s, metadata=self._config.metadata()))
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error)
            delay = retry.unary(failure, self._clock(), deadline)
            if delay is None:
                raise error_of(failure)
            self._targets.failed(index)
            await self._sleep(delay)
        raise StreamClosedError("client: closed by this program; make a new one")
