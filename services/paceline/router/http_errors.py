"""Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from paceline.runtime.status import status_of
from paceline.speculation import errors

log = logging.getLogger(__name__)

_CODES: tuple[tuple[type[Exception], str], ...] = (
    (errors.Unsupported, "unsupported_parameter"),
    (errors.InvalidRequest, "invalid_value"),
    (errors.Unauthenticated, "invalid_api_key"),
    (errors.NotFound, "model_not_found"),
    (errors.StaleLease, "stale_lease"),
    (errors.Overloaded, "rate_limit_exceeded"),
    (errors.DeadlineExceeded, "timeout"),
    (errors.Unavailable, "service_unavailable"),
)


class BodyTooLarge(errors.InvalidRequest):
    """More bytes than a request may have."""


def dump(value: object) -> bytes:
    """JSON on the wire. A lone surrogate (only ever echoed from a caller) becomes its escape, which is legal JSON."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dump(content)


def error_body(error: Exception) -> dict[str, Any]:
    """The body that tells an error; a bug is logged with its traceback and told without it."""
    known = isinstance(error, errors.PacelineError)
    if not known:
        log.error("a bug: %r", error, exc_info=error)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "internal_error")
    message = str(error) if known else "internal error; the service's log has the details"
    param = error.field if isinstance(error, errors.InvalidRequest) else None
    return {"error": {"message": message, "type": status_of(error).kind, "param": param, "code": code}}


def http_status(error: Exception) -> int:
    """The HTTP status of an error."""
    return 413 if isinstance(error, BodyTooLarge) else status_of(error).http


def error_response(error: Exception, headers: Mapping[str, str] | None = None) -> Response:
    """An error instead of an answer."""
    told = dict(headers or {})
    if isinstance(error, errors.Overloaded):
        told["retry-after"] = str(math.ceil(error.retry_after_s))  # whole seconds, says RFC 9110
        told["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))  # read by OpenAI's clients
    if isinstance(error, errors.Unauthenticated):
        told["www-authenticate"] = "Bearer"
    return Json(error_body(error), status_code=http_status(error), headers=told)
