"""The errors of Paceline.

PacelineError
├── InvalidRequest      a field is wrong: names it, what was expected, what came, what to do
│   └── Unsupported     a field is right but not offered yet: refused by name, never ignored
├── Unauthenticated     no API key, or one nobody knows
├── NotFound            no such model, session or request
├── StaleLease          the session is held under a newer lease epoch
├── Overloaded          a bounded queue is full: says when to come back
├── DeadlineExceeded    the caller's deadline passed
└── Unavailable         nobody can serve this now; retrying may help

Anything else is a bug. ``paceline.runtime.status`` maps each to one gRPC code and one HTTP status.
"""

from __future__ import annotations


class PacelineError(Exception):
    """Base of every error a caller can act on."""


class InvalidRequest(PacelineError):
    """A field of the request is wrong."""

    def __init__(self, field: str, *, expected: str, got: object, hint: str = "") -> None:
        self.field = field
        self.expected = expected
        self.got = got
        self.hint = hint
        message = f"{field}: expected {expected}, got {got!r}"
        super().__init__(f"{message}; {hint}" if hint else message)


class Unsupported(InvalidRequest):
    """A field asks for something this version does not do."""

    def __init__(self, field: str, *, got: object, hint: str = "leave it out") -> None:
        super().__init__(field, expected="it unset (not supported yet)", got=got, hint=hint)


class Unauthenticated(PacelineError):
    """The request carries no valid API key."""


class NotFound(PacelineError):
    """The thing named does not exist here."""


class StaleLease(PacelineError):
    """A newer lease of the session exists; the holder of this one must stop."""


class Overloaded(PacelineError):
    """A bounded queue is full."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{message}; retry after {retry_after_s:g} s")


class DeadlineExceeded(PacelineError):
    """The caller's deadline passed before the answer was complete."""


class Unavailable(PacelineError):
    """Nobody can serve the request now."""


def dead_end(output_len: int) -> InvalidRequest:
    """The error for options that leave no token to go on with."""
    return InvalidRequest(
        "sampling",
        expected="options that leave a token to go on with",
        got=f"none after {output_len} tokens",
        hint="grammar, bad words and min_tokens contradict each other there, or the grammar is too ambiguous to follow",
    )
