"""Bodies of OpenAI's endpoints that are no requests, and clients that do not read: refused with a status, let go."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from paceline.router.auth import OPEN
from paceline.router.http import http_app
from paceline.router.http_answers import COMPLETION as COMPLETION_DIALECT
from paceline.router.http_body import MAX_BODY_BYTES
from paceline.router.http_requests import parse_completion
from paceline.router.http_stream import Answering
from paceline.router.ingress_fake import ScriptedRouter
from paceline.router.requests import Request

COMPLETION = {"prompt": "x"}
PATHS = ["/v1/completions", "/v1/chat/completions"]


def app_client() -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=http_app(ScriptedRouter(), OPEN))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"x"', b"\xff{}", b'{"n": ' + b"9" * 5000 + b"}", b"[" * 100_000]
)
async def test_a_body_that_is_no_json_object(path: str, content: bytes) -> None:
    async with app_client() as client:
        answer = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "body", "invalid_value")


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_too_large(declared: bool) -> None:
    content = json.dumps(COMPLETION | {"prompt": "x" * MAX_BODY_BYTES}).encode()

    async def pieces() -> Any:
        yield content

    async with app_client() as client:
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/completions", content=content if declared else pieces(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "body")


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
async def test_only_json_is_read(content_type: str) -> None:
    async with app_client() as client:
        answer = await client.post("/v1/completions", content=b"{}", headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "content-type")


@pytest.mark.parametrize(
    "body", [COMPLETION | {"\ud800": 1}, COMPLETION | {"n": "\ud800"}, COMPLETION | {"a" * 9999: 1}]
)
async def test_an_error_that_echoes_is_json_and_short(body: dict[str, Any]) -> None:
    async with app_client() as client:
        headers = {"content-type": "application/json", "x-request-id": "mine"}
        answer = await client.post("/v1/completions", content=json.dumps(body), headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert len(answer.json()["error"]["message"]) < 500
    assert answer.headers["x-request-id"] == "mine"


async def test_a_request_id_unfit_for_a_log_is_refused() -> None:
    async with app_client() as client:
        answer = await client.post("/v1/completions", json=COMPLETION, headers={"x-request-id": "a b"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-request-id")


async def test_a_client_that_stops_reading_is_let_go() -> None:
    router = ScriptedRouter()
    stalled = asyncio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await stalled.wait()

    async def receive() -> Any:
        await stalled.wait()

    request = Request(request_id="r", text="x")
    wanted = parse_completion(COMPLETION | {"stream": True})
    answering = Answering(router, request, wanted, COMPLETION_DIALECT, slow_reader_s=0.05)
    await asyncio.wait_for(answering({"type": "http"}, receive, send), 5)
    assert router.closed.is_set()
