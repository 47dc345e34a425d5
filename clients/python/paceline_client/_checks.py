"""Checks of single arguments: each returns its value, or raises InvalidRequestError in the server's words."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable

from paceline_client._errors import InvalidRequestError

_INVALID = InvalidRequestError.of_field


def token_ids(field: str, ids: Iterable[int]) -> list[int]:
    """Token ids, as a list."""
    out = []
    for item in ids:
        try:
            value = operator.index(item)  # takes the integers of array libraries too
        except TypeError:
            value = -1
        if isinstance(item, bool) or not 0 <= value < 2**32:
            raise _INVALID(field, expected="token ids", got=item)
        out.append(value)
    return out


def text(field: str, value: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise _INVALID(field, expected="text", got=value)
    return value


def real(field: str, value: float, low: float, high: float, expected: str) -> float:
    """A finite number, bounds included."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise _INVALID(field, expected=expected, got=value)
    return value


def integer(field: str, value: int, low: int, high: int, expected: str) -> int:
    """A whole number, bounds included."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _INVALID(field, expected=expected, got=value)
    return value
