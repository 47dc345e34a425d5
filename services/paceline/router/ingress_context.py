"""What both ingresses go by: how long a client may stall, and what a call carries beside its message (gRPC metadata or
HTTP headers): a key, a request id, a trace."""

from __future__ import annotations

import re
from collections.abc import Mapping

from paceline.speculation.errors import InvalidRequest, Unauthenticated
from paceline.speculation.messages import NO_TRACE, Trace

SLOW_READER_S = 60.0
"""A client that reads nothing for this long is gone."""
REQUEST_ID_HEADER = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_TRACESTATE_CHARS = 512


def bearer_key(headers: Mapping[str, str]) -> str:
    """The API key of an ``authorization: Bearer KEY`` header; empty without one.

    Raises:
        Unauthenticated: the header is of another form.
    """
    header = headers.get("authorization", "")
    if not header:
        return ""
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("the authorization header must read 'Bearer KEY'")
    return key.strip()


def trace_of(headers: Mapping[str, str]) -> Trace:
    """The caller's W3C trace context. One that is malformed counts as none, as the standard demands."""
    parent = headers.get("traceparent", "").strip()
    if not _TRACEPARENT.fullmatch(parent):
        return NO_TRACE
    state = headers.get("tracestate", "").strip()
    return Trace(parent, state if len(state) <= _TRACESTATE_CHARS else "")


def checked_request_id(request_id: str, field: str) -> str:
    """The caller's request id, fit for a header, a log line and a file name; empty leaves it to the router."""
    if request_id and not _REQUEST_ID.fullmatch(request_id):
        raise InvalidRequest(field, expected="at most 128 of A-Z a-z 0-9 . _ : -", got=request_id[:160])
    return request_id
