"""One answer over as many calls as it takes: what to send next, and when. No I/O, no clock, no sleep in here.

    request() ──▶ call ──▶ feed(response) ──▶ Chunk …  until done
       ▲            │
       └── wait ◀── failed(failure)          or the exception to raise

Before Started the same request goes out again. After it, a Resume takes the place of the input: the prompt as the
server tokenized it, the tokens received, the seed, the numerics class and the lease. The server goes on after those
tokens; ``Assembly`` checks that it does.
"""

from __future__ import annotations

from collections.abc import Callable

from paceline.v1 import generation_pb2

from paceline_client._assembly import Assembly
from paceline_client._errors import (
    ConnectionLostError,
    DeadlineExceededError,
    Failure,
    PacelineError,
    StreamClosedError,
    UnavailableError,
    error_of,
)
from paceline_client._retry import Retry, RetryPolicy
from paceline_client._types import Chunk, Generation, Partial


class Exchange:
    """The state of one answer, shared by the sync and the async stream.

    Args:
        request: as it goes out first.
        policy: how often to try again.
        timeout_s: for the whole answer, from ``now``.
        now: seconds on a clock that never goes back.
        random: uniform in [0, 1), for jitter.
    """

    def __init__(
        self,
        request: generation_pb2.GenerateRequest,
        *,
        policy: RetryPolicy,
        timeout_s: float,
        now: float,
        random: Callable[[], float],
    ) -> None:
        self.assembly = Assembly()
        self.done = False
        self.resumes = 0
        self._request = request
        self._policy = policy
        self._timeout_s = timeout_s
        self._deadline = now + timeout_s
        self._retry = Retry(policy, random)
        self._resuming = False

    @property
    def received(self) -> Partial:
        """What has arrived so far."""
        return Partial(self.assembly.text, tuple(self.assembly.tokens), self.assembly.started)

    def request(self) -> generation_pb2.GenerateRequest:
        """What the next call sends."""
        request = generation_pb2.GenerateRequest()
        request.CopyFrom(self._request)
        started = self.assembly.started
        if started is not None:
            request.ClearField("input")  # the resume brings the prompt; the server takes one or the other
            request.model = started.model or request.model
            request.request_id = started.request_id or request.request_id
            request.resume.CopyFrom(
                generation_pb2.Resume(
                    prompt_token_ids=started.prompt_token_ids,
                    seed=started.seed,
                    numerics_class=self.assembly.numerics_class,
                    lease_epoch=self.assembly.lease_epoch,
                    session_id=self.assembly.session_id,
                    committed_token_ids=[token.id for token in self.assembly.tokens],
                )
            )
        self._resuming = started is not None
        return request

    def time_left_s(self, now: float) -> float:
        """Seconds the next call may take, at least 0."""
        return max(0.0, self._deadline - now)

    def stall_s(self, now: float) -> float:
        """Seconds so far without a stream that made progress."""
        return self._retry.lost_s(now)

    def feed(self, response: generation_pb2.GenerateResponse, now: float) -> Chunk | None:
        """Take a message; returns what is new in it, if anything.

        Raises:
            ServerError: the message doesn't fit what came before.
        """
        try:
            return self._take(response, now)
        except PacelineError as error:
            error.received = self.received
            raise

    def failed(self, failure: Failure, now: float) -> float:
        """The call ended before the answer did; returns the seconds to wait before the next one.

        Raises:
            PacelineError: nothing more is tried; which kind tells why.
        """
        self.assembly.lost()
        begun = self.assembly.started is not None
        overload = failure.overload and (begun or self._policy.retry_overloaded)
        if not (failure.transient or overload):
            raise self._final(failure)
        delay = self._retry.failed(failure, now)
        if delay is None or delay >= self.time_left_s(now):
            raise self._gave_up(failure, now)
        return delay

    def closed(self) -> StreamClosedError:
        """The error of reading on after this program closed the stream."""
        return StreamClosedError(
            f"stream: closed by this program after {len(self.assembly.tokens)} tokens; open a new one",
            received=self.received,
        )

    def generation(self, now: float) -> Generation:
        """The whole answer, once ``done``."""
        assembly = self.assembly
        assert assembly.started is not None
        assert assembly.finish is not None
        assert assembly.usage is not None
        assert assembly.metrics is not None
        return Generation(
            text=assembly.text,
            tokens=tuple(assembly.tokens),
            started=assembly.started,
            finish=assembly.finish,
            usage=assembly.usage,
            speculation=assembly.metrics,
            resumes=self.resumes,
            stall_s=self.stall_s(now),
            class_changed=assembly.class_changed,
            prompt_logprobs=assembly.prompt_logprobs,
            lossy=assembly.lossy,
        )

    def _take(self, response: generation_pb2.GenerateResponse, now: float) -> Chunk | None:
        event = response.WhichOneof("event")
        if event == "started":
            self.assembly.start(response.started)
            self.resumes += self._resuming
            self._resuming = False  # further ones on this stream only move the session
        elif event == "tokens":
            chunk = self.assembly.add(response.tokens)
            if chunk is not None and chunk.tokens:
                self._retry.progress(now)
            return chunk
        elif event == "completed":
            self.assembly.complete(response.completed)
            self._retry.progress(now)
            self.done = True
        return None  # an event this client has no name for comes from a newer server and may be left out

    def _final(self, failure: Failure) -> PacelineError:
        if isinstance(error := error_of(failure, self.received), DeadlineExceededError):
            return DeadlineExceededError(
                f"timeout: the answer was not complete after {len(self.assembly.tokens)} tokens "
                f"(timeout {self._timeout_s:g} s): {failure.details}; allow more time or ask for fewer tokens",
                received=self.received,
            )
        return error

    def _gave_up(self, failure: Failure, now: float) -> PacelineError:
        tried = f"gave up after {self._retry.total} more attempts in {self._retry.lost_s(now):.1f} s; last: {failure}"
        if self.assembly.started is not None:
            count = len(self.assembly.tokens)
            return ConnectionLostError(
                f"connection lost after {count} tokens (kept in .received), {tried}", received=self.received
            )
        if failure.overload:
            return error_of(failure, self.received)
        return UnavailableError(f"no server took the request, {tried}", received=self.received)
