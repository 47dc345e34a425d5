"""Bad input through every door: an error at once that names the field, and the cluster goes on serving."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from paceline.v1 import common_pb2 as common
from paceline.v1 import generation_pb2 as generation
from paceline_client import AsyncClient

from tests.e2e.hosting import Hosted
from tests.e2e.programs import paceline

pytestmark = pytest.mark.e2e

AT_ONCE_S = 5.0
PROGRAM_S = 30.0  # Python starts slowly on a busy machine
CONTEXT = 32768
OVERSIZE = 5 << 20
GENERATE = "/paceline.v1.GenerationService/Generate"
NAN, INFINITY = float("nan"), float("inf")
Code = grpc.StatusCode


@pytest.fixture
async def served(fake_cluster: Hosted) -> Hosted:
    """A cluster that served before."""
    await serves(fake_cluster)
    return fake_cluster


async def serves(hosted: Hosted) -> None:
    """One good request."""
    async with AsyncClient(hosted.address, timeout=30) as client:
        answer = await client.generate("In a line", max_tokens=4, ignore_eos=True)
    assert len(answer.token_ids) == 4


def asking(**fields: Any) -> bytes:
    """A request with some fields replaced."""
    return generation.GenerateRequest(**{"text": "hello", **fields}).SerializeToString()


def sampling(**fields: Any) -> bytes:
    return asking(sampling=common.SamplingOptions(**fields))


BAD_MESSAGES: dict[str, tuple[bytes, Code, str]] = {
    "unknown model": (asking(model="nobody/nothing"), Code.NOT_FOUND, "model: expected one of"),
    "no input": (generation.GenerateRequest().SerializeToString(), Code.INVALID_ARGUMENT, "input: expected"),
    "empty prompt": (asking(text=""), Code.INVALID_ARGUMENT, "prompt: expected"),
    "no tokens": (asking(text=None, tokens=generation.TokenIds()), Code.INVALID_ARGUMENT, "tokens.ids: expected"),
    "unknown token": (asking(text=None, tokens=generation.TokenIds(ids=[9999])), Code.INVALID_ARGUMENT, "prompt: exp"),
    "too long": (asking(text="a" * (CONTEXT + 1)), Code.INVALID_ARGUMENT, "prompt: expected"),
    "temperature NaN": (sampling(temperature=NAN), Code.INVALID_ARGUMENT, "temperature: expected"),
    "temperature infinite": (sampling(temperature=INFINITY), Code.INVALID_ARGUMENT, "temperature: expected"),
    "top_p 0": (sampling(top_p=0.0), Code.INVALID_ARGUMENT, "top_p: expected"),
    "max_tokens 0": (sampling(max_tokens=0), Code.INVALID_ARGUMENT, "max_tokens: expected"),
    "max_tokens above the limit": (sampling(max_tokens=1_000_000), Code.INVALID_ARGUMENT, "max_tokens: expected"),
    "relaxed rejection": (
        sampling(verification_mode=2, relaxed_acceptance=0.5),
        Code.INVALID_ARGUMENT,
        "relaxed_acceptance: expected",
    ),
    "bad grammar": (sampling(grammar=common.Grammar(regex="(")), Code.INVALID_ARGUMENT, "grammar.regex: expected"),
    "unknown drafter": (
        asking(speculation=generation.SpeculationOptions(drafter="oracle")),
        Code.INVALID_ARGUMENT,
        "speculation.drafter: expected",
    ),
    "unknown field": (asking() + b"\xf8\x3f\x01", Code.INVALID_ARGUMENT, "field number 1023"),
    "oversize": (asking(text="a" * OVERSIZE), Code.RESOURCE_EXHAUSTED, "larger than max"),
    "wrong type": (b"\x12\x02\xff\xfe", Code.UNKNOWN, "Error parsing message"),  # told by gRPC itself
}


async def test_bad_messages(served: Hosted) -> None:
    async with grpc.aio.insecure_channel(served.address) as channel:
        for name, (message, code, text) in BAD_MESSAGES.items():
            began = time.monotonic()
            send: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(GENERATE)
            call = send(message, timeout=AT_ONCE_S)
            assert (await call.code(), text in (await call.details() or "")) == (code, True), (
                f"{name}: expected {code} {text!r}, got {await call.code()} {await call.details()!r}"
            )
            assert time.monotonic() - began < AT_ONCE_S, name
            await serves(served)


GOOD: dict[str, Any] = {"prompt": "hello", "max_tokens": 4}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
BAD_BODIES: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "unknown model": (GOOD | {"model": "nobody/nothing"}, 404, None),
    "no prompt": ({"max_tokens": 4}, 400, "prompt"),
    "empty prompt": (GOOD | {"prompt": ""}, 400, "prompt"),
    "prompt of a wrong type": (GOOD | {"prompt": {"text": "hello"}}, 400, "prompt"),
    "too long": (GOOD | {"prompt": "a" * (CONTEXT + 1)}, 400, "prompt"),
    "temperature NaN": (GOOD | {"temperature": NAN}, 400, "temperature"),
    "temperature a string": (GOOD | {"temperature": "hot"}, 400, "temperature"),
    "max_tokens a fraction": (GOOD | {"max_tokens": 1.5}, 400, "max_tokens"),
    "seed negative": (GOOD | {"seed": -1}, 400, "seed"),
    "unknown field": (GOOD | {"temprature": 0}, 400, "temprature"),
    "unsupported field": (GOOD | {"suffix": "end"}, 400, "suffix"),
    "bad schema": (GOOD | {"guided_json": {"type": "nope"}}, 400, "grammar.json_schema"),
    "too many choices": (GOOD | {"n": 129}, 400, "n"),
    "no messages": (CHAT | {"messages": []}, 400, "messages"),
    "unknown role": (CHAT | {"messages": [{"role": "oracle", "content": "x"}]}, 400, "messages.0.role"),
    "content a number": (CHAT | {"messages": [{"role": "user", "content": 7}]}, 400, "messages.0.content"),
    "oversize": (GOOD | {"prompt": "a" * OVERSIZE}, 413, "body"),
}


async def test_bad_bodies(served: Hosted) -> None:
    async with httpx.AsyncClient(base_url=served.http, timeout=AT_ONCE_S) as client:
        for name, (body, status, param) in BAD_BODIES.items():
            path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
            answer = await client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
            told = answer.json()["error"]
            assert (answer.status_code, told["param"]) == (status, param), f"{name}: {answer.status_code} {told}"
            assert (param or "model") in told["message"], f"{name}: {told}"
            assert len(told["message"]) < 400, name
            await serves(served)
        broken = await client.post("/v1/completions", content=b"{", headers={"content-type": "application/json"})
        assert (broken.status_code, broken.json()["error"]["param"]) == (400, "body")
        nowhere = await client.post("/v1/nowhere", json=GOOD)
        assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "unknown_url")
    await serves(served)


BAD_OPTIONS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "unknown model": (("--model", "nobody/nothing", "hello"), 1, "model: expected one of"),
    "empty prompt": (("--raw", ""), 2, "prompt: expected"),
    "temperature NaN": (("--temperature", "nan", "hello"), 2, "temperature: expected"),
    "a wrong type": (("--top-k", "many", "hello"), 2, "'--top-k'"),
    "speculation": (("--speculation", "maybe", "hello"), 2, "--speculation: expected"),
    "unknown option": (("--temprature", "1", "hello"), 2, "--temprature"),
}


async def test_bad_options(served: Hosted) -> None:
    for name, (options, code, text) in BAD_OPTIONS.items():
        ran = await paceline("generate", "--address", served.address, *options)
        assert (ran.code, ran.out, text in ran.err) == (code, "", True), f"{name}: {ran}"
        assert "Traceback" not in ran.err, f"{name}: {ran.err}"
        await serves(served)


async def test_prompts_that_are_too_long_on_standard_input(served: Hosted) -> None:
    generate = ("generate", "--address", served.address, "--raw", "-")
    for name, prompt, text in (
        ("longer than the context", "a" * (CONTEXT + 1), "prompt: expected 1 to"),
        ("a message of 8 MB", "é" * 3_999_999, "larger than max"),
        ("longer than the program takes", "a" * 4_000_001, "PROMPT: expected"),
    ):
        ran = await paceline(*generate, stdin=prompt)
        assert (ran.code, text in ran.err) == (2, True), f"{name}: {ran.code} {ran.err[:500]}"
        await serves(served)


async def test_bad_configuration_starts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    for content, options, text in (
        ("target:\n  max_sesions: 4\n", (), "target.max_sesions: expected a known field"),
        ("target:\n  max_sessions: many\n", (), "target.max_sessions: expected"),
        ("tarjet: {}\n", (), "tarjet: expected a known field"),
        ("- 1\n", (), "--config: expected a YAML mapping"),
        ("", ("--set", "router.max_wating=1"), "router.max_wating: expected a known field"),
        ("", ("--set", "nobody.port=1"), "--set: expected"),
        ("", ("--drafts", "-1"), "drafts: expected"),
    ):
        path.write_text(content)
        began = time.monotonic()
        ran = await paceline("up", "--model", "fake", "--config", str(path), *options)
        assert (ran.code, ran.out, text in ran.err) == (2, "", True), f"{content!r} {options}: {ran}"
        assert "starting" not in ran.err, ran.err
        assert time.monotonic() - began < PROGRAM_S
