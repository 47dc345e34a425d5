"""Everything that can go wrong, as exceptions.

PacelineError
├── InvalidRequestError     an argument, a variable of the environment or a field is wrong; says which and what to do
├── AuthenticationError     no API key, or one the server doesn't take
├── NotFoundError           no such model
├── OverloadedError         the server is full just now: says when to come back
├── DeadlineExceededError   the timeout passed before the answer was complete
├── StreamClosedError       this program closed the stream or the client while (or before) reading
├── UnavailableError        no server took the request, after retries
├── ConnectionLostError     an answer broke off and no server went on with it, after retries
└── ServerError             a bug of the server, or an answer that breaks the protocol

``received`` holds what had arrived of an answer when it failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc

from paceline_client._types import Partial

_RETRY_AFTER_KEY = "paceline-retry-after-ms"
_RETRY_AFTER_TEXT = re.compile(r"retry after (\d+(?:\.\d+)?(?:e[+-]?\d+)?) ?s\b")

_TRANSIENT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED})
# INTERNAL is a bug of the server, unless its text is what transports, proxies and Ray Serve's ingress say when the
# router behind them went away.
_TRANSPORT = re.compile(
    r"rst_stream|goaway|proxy|connection (?:reset|refused|closed)|socket closed|broken pipe"
    r"|stream (?:removed|terminated)|end of stream|actor died|actor\b.{0,80}\bunavailable",
    re.IGNORECASE | re.DOTALL,
)
# A traceback is a bug whatever files it passed through; Ray's begin with the task's name.
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|\A.{0,8}ray::", re.DOTALL)
# UNKNOWN is what gRPC makes of an exception that escaped a handler (a bug) and of a lost stream; ours has these texts.
_ESCAPED = ("Unexpected <class", "Exception calling application", "Exception iterating responses")


class PacelineError(Exception):
    """Base of every error of this package.

    Attributes:
        received: what had arrived of the answer; None if the error is not about one.
    """

    def __init__(self, message: str, *, received: Partial | None = None) -> None:
        self.received = received
        super().__init__(message)


class InvalidRequestError(PacelineError):
    """The request can't be served as it is; trying again won't help."""

    @classmethod
    def of_field(cls, field: str, *, expected: str, got: object, hint: str = "") -> InvalidRequestError:
        """Word it as the server does."""
        message = f"{field}: expected {expected}, got {got!r}"
        return cls(f"{message}; {hint}" if hint else message)


class AuthenticationError(PacelineError):
    """No API key, or one the server doesn't take."""


class NotFoundError(PacelineError):
    """The thing named does not exist on the server."""


class OverloadedError(PacelineError):
    """The server is full just now and refused at once.

    Attributes:
        retry_after_s: when to come back, in seconds; None if the server didn't say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, received: Partial | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, received=received)


class DeadlineExceededError(PacelineError):
    """The timeout passed before the answer was complete."""


class StreamClosedError(PacelineError):
    """This program closed the stream or its client; an incomplete answer can't be read on."""


class UnavailableError(PacelineError):
    """No server took the request within the attempts and the time the retry policy allows."""


class ConnectionLostError(PacelineError):
    """An answer broke off and no server went on with it within what the retry policy allows."""


class ServerError(PacelineError):
    """A bug of the server, or an answer that breaks the protocol."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call ended when it didn't end well, free of I/O."""

    code: grpc.StatusCode
    details: str = ""
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return f"{self.code.name}: {self.details or 'no details'}"

    @property
    def transient(self) -> bool:
        """Whether another attempt may well succeed. CANCELLED counts: what this program cancels never gets here."""
        if self.code is grpc.StatusCode.INTERNAL:
            return bool(_TRANSPORT.search(self.details)) and not _TRACEBACK.search(self.details)
        if self.code is grpc.StatusCode.UNKNOWN:
            return not self.details.startswith(_ESCAPED)
        return self.code in _TRANSIENT

    @property
    def overload(self) -> bool:
        """Whether the server is full. gRPC uses the same code for messages above its size limit: those never fit."""
        return self.code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" not in self.details


TRUNCATED = Failure(grpc.StatusCode.UNAVAILABLE, "the stream ended before Completed")

_ERRORS: dict[grpc.StatusCode, type[PacelineError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: InvalidRequestError,  # what is left of it is a message that is too large
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: AuthenticationError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
}


def failure_of(error: grpc.RpcError) -> Failure:
    """The status of a failed call, with the time to come back from its trailing metadata or else its text."""
    details = error.details() or ""
    trailing: Any = error.trailing_metadata() or ()  # pairs, of another type in each of gRPC's two halves
    return Failure(error.code(), details, _retry_after_s(trailing, details))


def error_of(failure: Failure, received: Partial | None = None) -> PacelineError:
    """The exception a failure is told with when nothing more is tried."""
    if failure.overload:
        return OverloadedError(failure.details, retry_after_s=failure.retry_after_s, received=received)
    if failure.transient:
        return UnavailableError(str(failure), received=received)
    kind = _ERRORS.get(failure.code)
    if kind is None:
        return ServerError(str(failure), received=received)
    return kind(failure.details or str(failure), received=received)


def _retry_after_s(trailing: Iterable[tuple[str, str | bytes]], details: str) -> float | None:
    for key, value in trailing:
        if key == _RETRY_AFTER_KEY and isinstance(value, str) and value.isascii() and value.isdigit():
            return int(value) / 1000
    # Some ingresses drop trailing metadata; the server says it in the text as well.
    found = _RETRY_AFTER_TEXT.search(details)
    return float(found[1]) if found else None
