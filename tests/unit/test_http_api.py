"""The HTTP ingress as OpenAI's own client sees it, over a real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from paceline.router.auth import OPEN, Keys
from paceline.router.http import http_app
from paceline.router.http_server import HttpServer
from paceline.router.ingress_fake import ScriptedRouter
from paceline.router.ingress_ports import shared_socket
from paceline.speculation import errors
from paceline.speculation.messages import Finish, FinishReason
from paceline.speculation.params import SpeculationMode

TEXT = "Once upon a time."


@asynccontextmanager
async def served(router: ScriptedRouter, keys: Keys = OPEN) -> AsyncIterator[str]:
    """The base URL of a server over the router."""
    bound: socket.socket = shared_socket("127.0.0.1", 0)
    port = bound.getsockname()[1]
    server = HttpServer(http_app(router, keys), bound, grace_s=1)
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop()


@asynccontextmanager
async def client_of(router: ScriptedRouter, keys: Keys = OPEN, key: str = "none") -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        served(router, keys) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
    ):
        yield client


async def test_completion() -> None:
    router = ScriptedRouter()
    async with client_of(router) as client:
        raw = await client.completions.with_raw_response.create(
            model="fake", prompt="Tell", max_tokens=9, temperature=0, seed=2**64 - 1, stop=["END"], user="u"
        )
        answer = raw.parse()
    assert answer.choices[0].text == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.id == "cmpl-" + raw.headers["x-request-id"]
    assert answer.object == "text_completion"
    assert answer.system_fingerprint == "fp_" + "c" * 16
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 9, 12)
    [request] = router.requests
    assert (request.text, request.tokens, request.messages, request.tenant) == ("Tell", None, None, "default")
    sampling = request.sampling
    assert (sampling.temperature, sampling.seed, sampling.max_tokens, sampling.stop) == (0, 2**64 - 1, 9, ("END",))
    assert not router.closed.is_set()


async def test_completion_stream_without_usage() -> None:
    async with client_of(ScriptedRouter()) as client:
        stream = await client.completions.create(model="fake", prompt=[5, 6], stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 4 + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all("metrics" not in chunk.model_dump() for chunk in chunks)


async def test_chat() -> None:
    router = ScriptedRouter(finish=Finish(FinishReason.LENGTH))
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Tell"}, {"type": "text", "text": "me"}]},
        {"role": "assistant", "content": "What?", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "A story."},
    ]
    async with client_of(router) as client:
        answer = await client.chat.completions.create(model="fake", messages=messages, max_completion_tokens=5)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "length"
    assert answer.id.startswith("chatcmpl-")
    [request] = router.requests
    assert request.messages == (
        ("system", "Be brief."),
        ("user", "Tell\nme"),
        ("assistant", "What?"),
        ("user", "A story."),
    )
    assert request.sampling.max_tokens == 5


async def test_chat_stream_with_usage() -> None:
    router = ScriptedRouter()
    async with client_of(router) as client:
        stream = await client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    *body, last = chunks
    assert body[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in body) == TEXT
    assert body[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in body)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 9
    assert last.model_dump()["metrics"]["speculative_decoding"]["num_spec_steps"] == 3
    assert not router.closed.is_set()


async def test_options_beyond_openai() -> None:
    router = ScriptedRouter()
    extra = {
        "top_k": 5,
        "min_p": 0.1,
        "stop_token_ids": [3],
        "ignore_eos": True,
        "verification_mode": "agreement",
        "speculation": {"mode": "fixed", "max_draft_tokens": 3, "drafter": "ngram"},
    }
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "v=1", "x-request-id": "mine-1"}
    async with client_of(router) as client:
        answer = await client.completions.create(model="", prompt="x", extra_body=extra, extra_headers=headers)
    [request] = router.requests
    sampling, speculation = request.sampling, request.speculation
    assert (sampling.top_k, sampling.min_p, sampling.stop_token_ids, sampling.ignore_eos) == (5, 0.1, (3,), True)
    assert (speculation.mode, speculation.max_draft_tokens, speculation.drafter) == (SpeculationMode.FIXED, 3, "ngram")
    assert (request.trace.traceparent, request.trace.tracestate) == (headers["traceparent"], "v=1")
    assert answer.id == "cmpl-mine-1"


async def test_a_cancelled_stream_closes_the_routers_generator() -> None:
    router = ScriptedRouter(hold=True)
    async with client_of(router) as client:
        stream = await client.completions.create(model="fake", prompt="x", stream=True)
        async for _ in stream:
            break
        assert not router.closed.is_set()
        await stream.close()
        await asyncio.wait_for(router.closed.wait(), 2)


async def test_a_client_that_leaves_a_whole_answer_closes_the_routers_generator() -> None:
    router = ScriptedRouter(hold=True)
    async with served(router) as url, httpx.AsyncClient() as client:
        call = asyncio.create_task(client.post(f"{url}/v1/completions", json={"prompt": "x"}))
        await router.asked.wait()
        call.cancel()
        await asyncio.wait_for(router.closed.wait(), 2)


REFUSALS = [
    (errors.InvalidRequest("top_k", expected="a number", got=-1), openai.BadRequestError, "top_k", "invalid_value"),
    (errors.Unsupported("grammar", got="x"), openai.BadRequestError, "grammar", "unsupported_parameter"),
    (errors.Unauthenticated("who?"), openai.AuthenticationError, None, "invalid_api_key"),
    (errors.NotFound("no model 'x'"), openai.NotFoundError, None, "model_not_found"),
    (errors.StaleLease("newer"), openai.ConflictError, None, "stale_lease"),
    (errors.Overloaded("full", retry_after_s=1.2), openai.RateLimitError, None, "rate_limit_exceeded"),
    (errors.DeadlineExceeded("late"), openai.InternalServerError, None, "timeout"),
    (errors.Unavailable("no target"), openai.InternalServerError, None, "service_unavailable"),
    (KeyError("secret"), openai.InternalServerError, None, "internal_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "kind", "param", "code"), REFUSALS)
async def test_each_error_has_its_status_before_anything_is_sent(
    error: Exception, kind: type[openai.APIStatusError], param: str | None, code: str, stream: bool
) -> None:
    async with client_of(ScriptedRouter(refuse=error)) as client:
        with pytest.raises(kind) as caught:
            await client.completions.create(model="fake", prompt="x", stream=stream)
    body: Any = caught.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert (body["param"], body["code"]) == (param, code)
    assert "secret" not in body["message"]
    assert caught.value.response.headers["x-request-id"]
    assert caught.value.response.headers.get("retry-after") == ("2" if code == "rate_limit_exceeded" else None)


async def read_into(texts: list[str], stream: Any) -> None:
    async for chunk in stream:
        texts.append(chunk.choices[0].text)  # noqa: PERF401 - what came before an error counts


async def test_an_error_in_the_middle_ends_the_stream_without_done() -> None:
    router = ScriptedRouter(fail=errors.Unavailable("the target is gone"))
    async with client_of(router) as client:
        stream = await client.completions.create(model="fake", prompt="x", stream=True)
        texts: list[str] = []
        with pytest.raises(openai.APIError, match="the target is gone"):
            await read_into(texts, stream)
        assert "".join(texts) == TEXT
    async with served(router) as url, httpx.AsyncClient() as http:
        text = (await http.post(f"{url}/v1/completions", json={"prompt": "x", "stream": True})).text
    assert "[DONE]" not in text
    assert text.rstrip().splitlines()[-1].startswith('data: {"error":')


async def test_models_health_and_status() -> None:
    router = ScriptedRouter()
    async with client_of(router) as client, served(router) as url, httpx.AsyncClient(base_url=url) as http:
        [model] = (await client.models.list()).data
        assert (await client.models.retrieve(model.id)).id == "fake"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other/model")
        status = (await http.get("/internal/status")).json()
        assert status["models"][0]["paceline"]["targets"] == 1
        assert status["stats"] == {"sessions": 0}
        assert status["pid"]
        assert (await http.get("/readyz")).status_code == 200
        router.served = ()
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/healthz")).status_code == 200


async def test_keys_guard_everything_but_health() -> None:
    keys = Keys({"2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b": "acme"})  # "secret"
    router = ScriptedRouter()
    async with served(router, keys) as url, httpx.AsyncClient(base_url=url) as http:
        for path in ("/v1/models", "/v1/models/fake", "/internal/status"):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
        assert (await http.post("/v1/completions", json={"prompt": "x"})).status_code == 401
        basic = await http.get("/v1/models", headers={"authorization": "Basic secret"})
        assert basic.status_code == 401
        assert (await http.get("/healthz")).status_code == 200
    async with client_of(router, keys, "secret") as client:
        await client.completions.create(model="fake", prompt="x")
    assert router.requests[-1].tenant == "acme"


async def test_unknown_paths_and_methods_get_openais_body() -> None:
    async with served(ScriptedRouter()) as url, httpx.AsyncClient(base_url=url) as http:
        missing, wrong = await http.get("/v2/nothing"), await http.get("/v1/completions")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["type"] == "not_found_error"
