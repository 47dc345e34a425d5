"""Reading a JSON body: bounded in bytes and in time, and only when it says that it is JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request as HttpRequest

from paceline.router.http_errors import BodyTooLarge
from paceline.router.http_fields import brief
from paceline.runtime.server import MAX_MESSAGE_BYTES
from paceline.speculation.errors import DeadlineExceeded, InvalidRequest

MAX_BODY_BYTES = MAX_MESSAGE_BYTES
BODY_TIMEOUT_S = 30.0


async def read_json(request: HttpRequest) -> dict[str, Any]:
    """The object a request carries.

    Raises:
        InvalidRequest: it carries something else. BodyTooLarge: too much. DeadlineExceeded: too slowly.
    """
    # A page in a browser can send any other type to this machine without asking; this one it has to ask for (CORS).
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequest("content-type", expected="application/json", got=brief(content_type))
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            content = await _read(request)
    except TimeoutError:
        raise DeadlineExceeded(f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("body", expected="valid JSON", got=type(error).__name__, hint=str(error)[:160]) from None
    if not isinstance(value, dict):
        raise InvalidRequest("body", expected="a JSON object", got=brief(value))
    return value


async def _read(request: HttpRequest) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise BodyTooLarge("body", expected=f"at most {MAX_BODY_BYTES} bytes", got=f"{declared[:20]} bytes")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise BodyTooLarge("body", expected=f"at most {MAX_BODY_BYTES} bytes", got="more")
    return bytes(content)
