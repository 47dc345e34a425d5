"""The blocking client."""

from __future__ import annotations

import contextlib
import random as random_module
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
            self.channel = grpc.insecure_channel(address, CHANNEL_OPTIONS)
        else:
            self.channel = grpc.secure_channel(address, credentials, CHANNEL_OPTIONS)
        stub = cast(Callable[[grpc.Channel], Any], GenerationServiceStub)(self.channel)  # generated code has no types
        self.generate: grpc.UnaryStreamMultiCallable[
            generation_pb2.GenerateRequest, generation_pb2.GenerateResponse
        ] = stub.Generate
        self.list_models: grpc.UnaryUnaryMultiCallable[
            generation_pb2.ListModelsRequest, generation_pb2.ListModelsResponse
        ] = stub.ListModels


class Stream(AnswerView, Iterator[Chunk]):
    """An answer as it comes: iterate for chunks. One thread reads; ``close`` may be called from any.

    The call starts with the first read or on entering the context. Leaving the context early cancels it. A lost
    server is survived without a token lost or repeated, see ``RetryPolicy``.
    """

    def __init__(
        self,
        exchange: Exchange,
        targets: Targets[_Server],
        metadata: tuple[tuple[str, str], ...],
        sleep: Callable[[float], object] | None,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(exchange, clock)
        self._targets = targets
        self._metadata = metadata
        self._closing = threading.Event()
        self._sleep = sleep or self._closing.wait  # closing ends the wait
        self._lock = threading.Lock()  # between opening a call and closing the stream
        self._call: Any = None
        self._target = 0
        self._error: PacelineError | None = None

    def __enter__(self) -> Self:
        self._opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __next__(self) -> Chunk:
        """The next chunk.

        Raises:
            StopIteration: the answer is complete.
            PacelineError: it failed; reading again raises the same.
        """
        if self._error is not None:
            raise self._error
        try:
            chunk = self._advance()
        except PacelineError as error:
            self._error = error
            self.close()
            raise
        if chunk is None:
            raise StopIteration
        return chunk

    def result(self) -> Generation:
        """Read to the end; returns the whole answer, what was read before included.

        Raises:
            PacelineError: it failed.
        """
        for _ in self:
            pass
        return self._exchange.generation(self._clock())

    def close(self) -> None:
        """Cancel the answer if it is not complete. Safe to repeat."""
        self._closing.set()
        with self._lock:
            if self._call is not None:
                self._call.cancel()

    def _advance(self) -> Chunk | None:
        # Bounded: each turn takes one message of a stream the deadline ends, or one of the attempts allowed.
        while not self._exchange.done:
            failure = TRUNCATED
            try:
                response = next(self._opened(), None)
            except grpc.RpcError as error:
                response, failure = None, failure_of(error)
            if self._closing.is_set() or self._targets.closed:
                raise self._exchange.closed()
            if response is None:
                self._recover(failure)
                continue
            chunk = self._exchange.feed(response, self._clock())
            if chunk is not None:
                return chunk
        self._drain()
        return None

    def _opened(self) -> Any:
        with self._lock:
            if self._exchange.done or self._call is not None:
                return self._call
            if self._closing.is_set() or self._targets.closed:
                raise self._exchange.closed()
            self._target, server = self._targets.current()
            timeout = self._exchange.time_left_s(self._clock())
            try:
                self._call = server.generate(self._exchange.request(), timeout=timeout, metadata=self._metadata)
            except ValueError as error:  # the client was closed since we looked
                raise self._exchange.closed() from error
            return self._call

    def _recover(self, failure: Failure) -> None:
        delay = self._exchange.failed(failure, self._clock())
        self._targets.failed(self._target)
        self._call = None
        self._sleep(delay)

    def _drain(self) -> None:
        """Take the status after Completed, so that the server doesn't see a cancelled call."""
        call, self._call = self._call, None
        if call is not None:
            with contextlib.suppress(grpc.RpcError):
                next(call, None)


class Client:
    """A blocking client of Paceline; safe to share between threads.

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
        sleep: Callable[[float], object] | None = None,
        random: Callable[[], float] = _SYSTEM_RANDOM.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = Config.load(address, api_key, timeout, retry or RetryPolicy())
        self._sleep = sleep
        self._random = random
        self._clock = clock
        self._targets = Targets([_Server(each, credentials) for each in self._config.addresses])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is under way and close the connections. Safe to repeat."""
        self._targets.closed = True
        for server in self._targets.items:
            server.channel.close()

    def generate(self, prompt: str | Sequence[int] | None = None, **options: Unpack[GenerateOptions]) -> Generation:
        """Generate an answer and return it whole. ``GenerateOptions`` lists the options.

        Args:
            prompt: text, tokenized as it is, or token ids; None with ``messages``.

        Raises:
            PacelineError: see ``paceline_client._errors`` for the tree.
        """
        with self.stream(prompt, **options) as stream:
            return stream.result()

    def stream(self, prompt: str | Sequence[int] | None = None, **options: Unpack[GenerateOptions]) -> Stream:
        """Generate an answer and return it as it comes; use it in a ``with`` statement. Arguments as ``generate``.

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
        return Stream(exchange, self._targets, metadata, self._sleep, self._clock)

    def models(self, *, timeout: float = MODELS_TIMEOUT_S) -> tuple[Model, ...]:
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
                return models_of(server.list_models(request, timeout=left_s, metadata=self._config.metadata()))
            except grpc.RpcError as error:
                failure = failure_of(error)
            delay = retry.unary(failure, self._clock(), deadline)
            if delay is None:
                raise error_of(failure)
            self._targets.failed(index)
            (self._sleep or time.sleep)(delay)
        raise StreamClosedError("client: closed by this program; make a new one")
