"""Each error of ours ↔ one gRPC status code and one HTTP status. Whatever else escapes is a bug: INTERNAL."""

from __future__ import annotations

from typing import NamedTuple

import grpc

from paceline.speculation import errors

RETRY_AFTER_KEY = "paceline-retry-after-ms"


class Status(NamedTuple):
    """How an error is told to a caller."""

    code: grpc.StatusCode
    http: int
    kind: str  # the `type` of an OpenAI-style error body


_BUG = Status(grpc.StatusCode.INTERNAL, 500, "server_error")
_STATUS: tuple[tuple[type[Exception], Status], ...] = (
    (errors.InvalidRequest, Status(grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error")),
    (errors.Unauthenticated, Status(grpc.StatusCode.UNAUTHENTICATED, 401, "authentication_error")),
    (errors.NotFound, Status(grpc.StatusCode.NOT_FOUND, 404, "not_found_error")),
    (errors.StaleLease, Status(grpc.StatusCode.FAILED_PRECONDITION, 409, "conflict_error")),
    (errors.Overloaded, Status(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "rate_limit_error")),
    (errors.DeadlineExceeded, Status(grpc.StatusCode.DEADLINE_EXCEEDED, 504, "timeout_error")),
    (errors.Unavailable, Status(grpc.StatusCode.UNAVAILABLE, 503, "unavailable_error")),
)


def status_of(error: Exception) -> Status:
    """The status an error is told with."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), _BUG)


def error_from(code: grpc.StatusCode, details: str) -> errors.PacelineError:
    """The error a worker meant by a gRPC status; codes that are not ours count as Unavailable."""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        field, _, rest = details.partition(": expected ")
        expected, _, got = rest.partition(", got ")
        return errors.InvalidRequest(field, expected=expected or details, got=got)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.Overloaded(details, retry_after_s=1.0)
    for kind, status in _STATUS:
        if status.code is code:
            return kind(details)  # type: ignore[return-value]
    return errors.Unavailable(f"{code.name}: {details}")
