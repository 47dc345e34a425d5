"""The draft worker as a process: what it offers, how it starts, how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from paceline.draft.__main__ import main
from paceline.draft.assembly import assemble, describe
from paceline.runtime.config import DraftConfig, parse
from paceline.runtime.process import parse_ready
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import PROTOCOL_VERSION
from paceline.speculation.sampling import SAMPLER_VERSION
from paceline.v1 import common_pb2 as common
from paceline.v1.draft_pb2_grpc import DraftServiceStub

from tests.unit.main_kit import ended_by, start, taken_port


def config(**values: Any) -> DraftConfig:
    return parse(DraftConfig, {"engine": {"model": "fake:quality=0.8", "model_id": "small"}, **values})


def test_what_is_offered_is_described() -> None:
    lines: list[str] = []
    offered = assemble(config(), lines.append)
    described = describe(config(), offered, "i")
    assert (described.protocol_version, described.sampler_version) == (PROTOCOL_VERSION, SAMPLER_VERSION)
    assert [drafter.name for drafter in described.drafters] == ["ngram", "auto", "model"]
    ngram, auto, model = (drafter.model for drafter in described.drafters)
    assert auto == model
    assert (ngram.model_id, ngram.tokenizer_fingerprint) == ("ngram", "")
    assert (model.model_id, model.vocab_size, len(model.tokenizer_fingerprint)) == ("small", 258, 64)
    assert described.limits.kv_tokens == 65536
    assert len(lines) >= 2


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"drafters": []}, "drafters"),
        ({"drafters": ["ngram", "eagle"]}, "drafters"),
        ({"drafters": ["ngram", "ngram"]}, "drafters"),
        ({"drafters": ["model"]}, "default_drafter"),
        ({"drafters": ["ngram", "auto"]}, "drafters"),
        ({"engine": None}, "engine"),
        ({"ngram_min": 6}, "ngram_min"),
    ],
)
def test_settings_that_contradict_each_other_are_named(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        assemble(config(**values), lambda line: None)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "max_draft_token=3"], "max_draft_token: expected a known field"),
        (["--set", "engine.model=fake:nonsense=1"], "fake options"),
        (["--config", "/nowhere.yaml"], "--config: expected a readable YAML file"),
    ],
)
def test_bad_settings_end_with_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_taken_port_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with taken_port() as port:
        assert main(["--set", "drafters=[ngram]", "--set", f"port={port}"]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_help_lists_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "ngram_max  Longest suffix the ngram drafter matches. [5]" in shown
    assert "engine.model  A Hugging Face id" in shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_serves_until_it_is_told_to_stop(number: signal.Signals) -> None:
    child, ready = start("draft", "drafters=[ngram]")
    assert (ready.service, ready.pid, ready.model_id) == ("draft", child.pid, "ngram")

    async def describe() -> Any:
        async with grpc.aio.insecure_channel(ready.address) as channel:
            stub: Any = DraftServiceStub(channel)  # type: ignore[no-untyped-call]
            return await stub.Describe(common.DescribeRequest(), timeout=5)

    assert asyncio.run(describe()).incarnation == ready.incarnation
    assert "drafter ngram: suffixes of 2 to 5 tokens" in ended_by(child, number)


def test_a_worker_does_not_outlive_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'paceline.draft', '--set', 'drafters=[ngram]',"
        " '--parent-pid', str(os.getpid())], stdout=subprocess.PIPE, text=True)\n"
        "sys.stdout.write(child.stdout.readline())\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=True)
    ready = parse_ready(done.stdout)
    assert ready is not None
    deadline = time.monotonic() + 10
    while _alive(ready.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(ready.pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"
