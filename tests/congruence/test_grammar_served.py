"""Grammars from a client's call to its answer, through the real SDK and HTTP, router, draft worker and target."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from paceline.draft import assembly as draft_assembly
from paceline.draft import service as draft_service
from paceline.draft.worker import DraftWorker
from paceline.router.auth import OPEN
from paceline.router.http import http_app
from paceline.router.ingress import grpc_ingress
from paceline.router.router import Router
from paceline.runtime.config import DraftConfig, EngineConfig, RouterConfig, TargetConfig
from paceline.runtime.server import WorkerServer
from paceline.target import assembly as target_assembly
from paceline.target import service as target_service
from paceline_client import AsyncClient, InvalidRequestError, Speculation

from tests.congruence.small_cluster import serving

MODEL = "fake:seed=3,spread=2"
SCHEMA = {
    "type": "object",
    "properties": {"rider": {"enum": ["ada", "grace"]}, "place": {"type": "integer", "minimum": 1, "maximum": 40}},
    "required": ["rider", "place"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "who?"}], "max_tokens": 80, "seed": 4}
AS_SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"name": "result", "schema": SCHEMA}}}


def quiet(line: str) -> None:
    pass


@contextlib.asynccontextmanager
async def target() -> AsyncIterator[str]:
    config = TargetConfig(engine=EngineConfig(model=MODEL))
    loaded = target_assembly.load(config, quiet)
    verifier = target_assembly.verifier_for(config, loaded, "t-1")
    description = target_assembly.describe(verifier, loaded)
    compiler = target_assembly.compiler_for(loaded)
    service = target_service.TargetService(
        verifier, loaded.engine, description, loaded.tokenizer_files, compiler=compiler
    )
    server = WorkerServer("127.0.0.1", 0, services=(target_service.SERVICE_NAME,), add=target_service.add_to(service))
    async with serving(server, service) as address:
        yield address


@contextlib.asynccontextmanager
async def draft() -> AsyncIterator[str]:
    config = DraftConfig(engine=EngineConfig(model=f"{MODEL},quality=0.8"))
    offered = draft_assembly.assemble(config, quiet)
    worker = DraftWorker([each.drafter for each in offered], "ngram", incarnation="d-1")
    service = draft_service.DraftService(worker, draft_assembly.describe(config, offered, "d-1"))
    server = WorkerServer("127.0.0.1", 0, services=(draft_service.SERVICE_NAME,), add=draft_service.add_to(service))
    async with serving(server, service) as address:
        yield address


@dataclass
class Served:
    http: httpx.AsyncClient
    sdk: AsyncClient

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json=CHAT | fields)


@contextlib.asynccontextmanager
async def cluster() -> AsyncIterator[Served]:
    async with target() as target_address, draft() as draft_address:
        config = RouterConfig(targets=(target_address,), drafts=(draft_address,), draft_deadline_ms=5000)
        router = await Router.connect(config, rng=random.Random(7))
        ingress = grpc_ingress(router, OPEN, "127.0.0.1", 0, max_calls=64, shared=False)
        port = await ingress.start()
        transport = httpx.ASGITransport(app=http_app(router, OPEN))
        try:
            async with (
                httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as http,
                AsyncClient(f"127.0.0.1:{port}", timeout=30) as sdk,
            ):
                yield Served(http, sdk)
        finally:
            await ingress.stop(0)
            await router.close()


SPECULATION: list[dict[str, Any]] = [
    {"mode": "off"},
    *({"mode": "fixed", "max_draft_tokens": k, "drafter": name} for name in ("ngram", "model") for k in (1, 4, 8)),
]


async def test_answers_over_http_are_of_the_schema_and_the_same_however_they_are_drafted() -> None:
    async with cluster() as served:
        answers = await asyncio.gather(*(served.chat(speculation=asked, **AS_SCHEMA) for asked in SPECULATION))
    bodies = [answer.json() for answer in answers]
    texts = {body["choices"][0]["message"]["content"] for body in bodies}
    assert len(texts) == 1
    value = json.loads(texts.pop())
    assert set(value) == {"rider", "place"}
    assert 1 <= value["place"] <= 40
    assert {body["choices"][0]["finish_reason"] for body in bodies} == {"stop"}
    accepted = [body["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"] for body in bodies]
    assert bodies[0]["paceline"]["models"]["proposers"] == ["grammar"], "with no drafter, what is forced is drafted"
    assert max(accepted) > accepted[0], accepted


async def test_rejection_mode_keeps_to_the_grammar() -> None:
    async with cluster() as served:
        asked = {"mode": "fixed", "max_draft_tokens": 4, "drafter": "model"}
        answer = await served.chat(speculation=asked, verification_mode="rejection", temperature=0.9, **AS_SCHEMA)
    assert json.loads(answer.json()["choices"][0]["message"]["content"]).keys() == {"rider", "place"}


async def test_answers_over_the_sdk_match() -> None:
    speculation = Speculation("fixed", 4, "model")
    async with cluster() as served:
        by_regex = await served.sdk.generate("who?", regex="(ada|grace) is [0-9]{1,3}", speculation=speculation)
        by_lark = await served.sdk.generate("who?", grammar='start: ("ada" | "grace") " is " /[0-9]{1,3}/', seed=2)
        by_schema = await served.sdk.generate("who?", json_schema=SCHEMA, max_tokens=80)
    assert re.fullmatch("(ada|grace) is [0-9]{1,3}", by_regex.text)
    assert re.fullmatch("(ada|grace) is [0-9]{1,3}", by_lark.text)
    assert json.loads(by_schema.text)["rider"] in ("ada", "grace")


async def test_a_bad_grammar_is_an_error_by_name_through_every_door_and_the_next_answer_comes() -> None:
    async with cluster() as served:
        bad = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "nope"}}}
        answer = await served.chat(response_format=bad)
        told = answer.json()["error"]
        assert (answer.status_code, told["param"]) == (400, "grammar.json_schema")
        assert "Invalid type: nope" in told["message"]
        with pytest.raises(InvalidRequestError, match=r"grammar\.regex: expected a grammar that compiles.*unclosed"):
            await served.sdk.generate("who?", regex="(")
        with pytest.raises(InvalidRequestError, match="ignore_eos: expected False with a grammar"):
            await served.sdk.generate("who?", regex="a", ignore_eos=True)
        with pytest.raises(InvalidRequestError, match="sampling: expected options that leave a token"):
            await served.sdk.generate("who?", regex="abc", min_tokens=10, max_tokens=20)
        assert (await served.sdk.generate("who?", regex="abc")).text == "abc"
