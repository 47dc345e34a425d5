"""Every error of ours is told by one status and understood again, with the same text."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.runtime.status import error_from, status_of
from paceline.speculation import errors
from paceline.speculation.errors import InvalidRequest, Overloaded, PacelineError, Unavailable

ERRORS: list[tuple[PacelineError, grpc.StatusCode, int]] = [
    (InvalidRequest("top_p", expected="a number", got="x", hint="try 1"), grpc.StatusCode.INVALID_ARGUMENT, 400),
    (errors.Unsupported("messages", got="a chat"), grpc.StatusCode.INVALID_ARGUMENT, 400),
    (errors.Unauthenticated("no API key"), grpc.StatusCode.UNAUTHENTICATED, 401),
    (errors.NotFound("no such model"), grpc.StatusCode.NOT_FOUND, 404),
    (errors.StaleLease("epoch 3 is held"), grpc.StatusCode.FAILED_PRECONDITION, 409),
    (Overloaded("the queue is full", retry_after_s=0.25), grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    (errors.DeadlineExceeded("too late"), grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    (Unavailable("no target serves"), grpc.StatusCode.UNAVAILABLE, 503),
]


def subclasses(kind: type[PacelineError]) -> Iterator[type[PacelineError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from subclasses(child)


def test_every_error_is_tested() -> None:
    assert {type(error) for error, _, _ in ERRORS} == set(subclasses(PacelineError))


@pytest.mark.parametrize(("error", "code", "http"), ERRORS)
def test_an_error_survives_its_status(error: PacelineError, code: grpc.StatusCode, http: int) -> None:
    status = status_of(error)
    assert (status.code, status.http) == (code, http)
    assert status.kind.endswith("_error")
    meant = error_from(status.code, str(error))
    assert isinstance(error, type(meant))
    assert type(meant) is not PacelineError
    assert str(meant) == str(error)


def test_parts_of_an_error_survive() -> None:
    invalid = error_from(grpc.StatusCode.INVALID_ARGUMENT, str(ERRORS[0][0]))
    assert isinstance(invalid, InvalidRequest)
    assert (invalid.field, invalid.expected, repr(invalid.got)) == ("top_p", "a number", "'x'; try 1")
    overloaded = error_from(grpc.StatusCode.RESOURCE_EXHAUSTED, str(Overloaded("full", retry_after_s=1e-5)))
    assert isinstance(overloaded, Overloaded)
    assert overloaded.retry_after_s == 1e-5


def test_details_that_are_not_ours_are_kept_whole() -> None:
    invalid = error_from(grpc.StatusCode.INVALID_ARGUMENT, "Exception deserializing request!")
    assert "Exception deserializing request!" in str(invalid)
    overloaded = error_from(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")
    assert isinstance(overloaded, Overloaded)
    assert overloaded.retry_after_s == 1
    assert "Concurrent RPC limit exceeded!" in str(overloaded)


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN])
def test_codes_that_are_not_ours_count_as_unavailable(code: grpc.StatusCode) -> None:
    assert str(error_from(code, "details")) == f"{code.name}: details"
    assert type(error_from(code, "details")) is Unavailable


@pytest.mark.parametrize("error", [ValueError("x"), AssertionError(), PacelineError("a bare one")])
def test_anything_else_is_a_bug(error: Exception) -> None:
    assert status_of(error).code is grpc.StatusCode.INTERNAL
    assert status_of(error).http == 500


@given(st.sampled_from(list(grpc.StatusCode)), st.text())
def test_any_status_means_an_error(code: grpc.StatusCode, details: str) -> None:
    assert details in str(error_from(code, details))
