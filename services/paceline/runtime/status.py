"""Each error of ours ↔ one gRPC status code and one HTTP status. Whatever else escapes is a bug: INTERNAL."""

from __future__ import annotations

import re
from typing import NamedTuple

import grpc

from paceline.speculation import errors

RETRY_AFTER_KEY = "paceline-retry-after-ms"
_RETRY_AFTER = re.compile(r"(.*); retry after ([0-9.]+(?:e[+-]?[0-9]+)?) s", re.DOTALL)


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


class _Told:
    """What came, as a worker has written it already."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def error_from(code: grpc.StatusCode, details: str) -> errors.PacelineError:
    """The error a worker meant by a gRPC status, with the same text; codes that are not ours count as Unavailable."""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return _invalid(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        told = _RETRY_AFTER.fullmatch(details)
        message, seconds = told.groups() if told else (details, "1")  # gRPC's own limits name no time
        return errors.Overloaded(message, retry_after_s=float(seconds))
    for kind, status in _STATUS:
        if status.code is code:
            return kind(details)  # type: ignore[return-value]
    return errors.Unavailable(f"{code.name}: {details}")


def _invalid(details: str) -> errors.InvalidRequest:
    field, found, rest = details.partition(": expected ")
    expected, found_too, got = rest.partition(", got ")
    if not (found and found_too):
        return errors.InvalidRequest("request", expected="a valid one", got=_Told(details))
    return errors.InvalidRequest(field, expected=expected, got=_Told(got))
