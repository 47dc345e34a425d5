"""The target verifier as a process: what it describes, how it starts, how it ends."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import grpc
import pytest
from paceline.runtime import text
from paceline.runtime.config import TargetConfig, parse
from paceline.speculation.messages import PROTOCOL_VERSION, SAMPLER_VERSION
from paceline.target.__main__ import main
from paceline.target.assembly import describe, load, verifier_for
from paceline.v1 import common_pb2 as common
from paceline.v1 import target_pb2 as pb
from paceline.v1.target_pb2_grpc import TargetServiceStub

from tests.unit.main_kit import ended_by, start, taken_port


def config(**values: Any) -> TargetConfig:
    return parse(TargetConfig, {"engine": {"model": "fake:seed=3", "model_id": "big"}, **values})


def test_a_target_describes_itself() -> None:
    settings = config(max_sessions=9, max_queue=4, max_draft_tokens=7)
    loaded = load(settings, lambda line: None)
    described = describe(verifier_for(settings, loaded, "i"), loaded)
    assert (described.protocol_version, described.sampler_version) == (PROTOCOL_VERSION, SAMPLER_VERSION)
    assert (described.incarnation, described.model.model_id) == ("i", "big")
    assert described.model.numerics_class == loaded.engine.info.numerics_class
    assert dict(described.model.numerics) == loaded.engine.info.numerics
    assert described.model.tokenizer_fingerprint == text.fingerprint(loaded.tokenizer_files)
    assert tuple(described.model.eos_token_ids) == loaded.engine.info.eos_token_ids
    limits = described.limits
    assert (limits.max_sessions, limits.max_draft_tokens, limits.kv_tokens) == (4, 7, 65536)
    assert [(point.tokens, point.seconds) for point in described.cost_curve] == list(loaded.engine.cost_curve())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "step_token=3"], "step_token"),
        (["--set", "step_tokens=1"], "step_tokens"),
        (["--set", "engine.model=fake:nonsense=1"], "fake options"),
        (["--set", "engine.model=/nowhere/model.gguf"], "/nowhere/model.gguf"),
        (["--config", "/nowhere.yaml"], "--config: expected a readable YAML file"),
    ],
)
def test_bad_settings_end_with_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_taken_port_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with taken_port() as port:
        assert main(["--set", "engine.model=fake", "--set", f"port={port}"]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_help_lists_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "step_tokens  Tokens of one step at most; longer prompts are prefilled in chunks. [256]" in shown
    assert "engine.model  A Hugging Face id" in shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_target_serves_until_it_is_told_to_stop(number: signal.Signals) -> None:
    child, ready = start("target", "engine.model=fake")
    assert (ready.service, ready.pid, ready.model_id) == ("target", child.pid, "fake")

    async def look() -> tuple[Any, list[Any]]:
        async with grpc.aio.insecure_channel(ready.address) as channel:
            stub: Any = TargetServiceStub(channel)  # type: ignore[no-untyped-call]
            described = await stub.Describe(common.DescribeRequest(), timeout=5)
            return described, [c async for c in stub.FetchTokenizer(pb.FetchTokenizerRequest(), timeout=5)]

    described, chunks = asyncio.run(look())
    assert described.incarnation == ready.incarnation
    data = b"".join(chunk.data for chunk in chunks if chunk.name == text.TOKENIZER_FILE)
    assert text.fingerprint({text.TOKENIZER_FILE: data}) == described.model.tokenizer_fingerprint
    assert "fake: 65536 KV tokens, 256 tokens a step" in ended_by(child, number)
