"""``paceline generate`` against a scripted server."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from paceline.cli.main import paceline
from paceline.v1 import generation_pb2

from tests.unit.cli_scripted import ACCEPTED, Scripted, started, tokens

TEXT = "One two three four five six"
CLOSING = "τ 2.50 · accepted 38 % of drafted, 50 % of verified · 3 rounds"


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as server:
        yield server


def invoke(server: Scripted, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(paceline, ["generate", "--address", server.address, *arguments], input=stdin)


def test_text_goes_to_standard_output_and_the_closing_line_to_standard_error(server: Scripted) -> None:
    result = invoke(server, "Count", "--max-tokens", "6", "--temperature", "0")
    assert (result.exit_code, result.stdout) == (0, TEXT + "\n")
    assert result.stderr.startswith("6 tokens in ")
    assert result.stderr.endswith(CLOSING + "\n")
    [request] = server.requests
    assert [(each.role, each.content) for each in request.chat.messages] == [("user", "Count")]
    assert (request.sampling.max_tokens, request.sampling.temperature) == (6, 0)
    assert not request.sampling.HasField("top_k")


def test_grammars_reach_the_server(server: Scripted, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    assert invoke(server, "p", "--json-schema", str(schema)).exit_code == 0
    assert invoke(server, "p", "--regex", "a+").exit_code == 0
    assert [request.sampling.grammar.json_schema for request in server.requests] == ['{"type": "object"}', ""]
    assert server.requests[1].sampling.grammar.regex == "a+"
    both = invoke(server, "p", "--json-schema", str(schema), "--regex", "a+")
    assert both.exit_code == 2
    assert "regex: expected at most one of json_schema, regex, grammar" in both.stderr


def test_every_option_reaches_the_server(server: Scripted) -> None:
    options = "--raw --top-k 5 --top-p 0.9 --min-p 0.1 --seed 3 --stop a --stop b --model m --drafter ngram"
    options += " --repetition-penalty 1.1 --presence-penalty 0.5 --frequency-penalty -1 --min-tokens 2 --logprobs 3"
    result = invoke(server, "p", *options.split(), "--speculation", "6", "--api-key", "secret")
    assert result.exit_code == 0
    [request] = server.requests
    sampling, speculation = request.sampling, request.speculation
    assert (request.text, request.model) == ("p", "m")
    assert (sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed) == (5, 0.9, 0.1, 3)
    assert list(sampling.stop) == ["a", "b"]
    penalties = sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty
    assert (*penalties, sampling.min_tokens, sampling.logprobs) == (1.1, 0.5, -1, 2, 3)
    assert (speculation.mode, speculation.max_draft_tokens, speculation.drafter) == (
        generation_pb2.SPECULATION_MODE_FIXED,
        6,
        "ngram",
    )
    assert server.keys == ["Bearer secret"]


def test_the_prompt_can_come_from_standard_input(server: Scripted) -> None:
    assert invoke(server, "-", "--raw", stdin="piped in").exit_code == 0
    assert invoke(server, "--raw", stdin="no dash").exit_code == 0
    assert [request.text for request in server.requests] == ["piped in", "no dash"]


def test_json_is_one_object_with_sources_and_rates(server: Scripted) -> None:
    result = invoke(server, "Count", "--json")
    value = json.loads(result.stdout)
    assert result.stderr == ""
    assert (value["text"], value["seed"], value["finish_reason"]) == (TEXT, 7, "stop")
    assert value["usage"] == {"prompt_tokens": 2, "completion_tokens": 6}
    assert [token["source"] for token in value["tokens"]] == [
        "target_only",
        "accepted",
        "corrected",
        "accepted",
        "accepted",
        "bonus",
    ]
    speculation = value["speculation"]
    assert (speculation["acceptance_rate_verified"], speculation["acceptance_rate_drafted"]) == (0.5, 0.375)
    assert speculation["accepted_length"] == 2.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["p", "--temperature", "-1"], "temperature: expected a number from 0 to 100, got -1.0"),
        (["p", "--speculation", "much"], "--speculation: expected auto, off or a whole number K, got 'much'"),
        (["p", "--speculation", "65"], "speculation.max_draft_tokens: expected a whole number, 0 to 64, got 65"),
        (["-"], "PROMPT: expected 1 to 4000000 characters on standard input, got '0 characters'"),
        (["p", "--top-k", "x"], "Invalid value for '--top-k'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(server: Scripted, arguments: list[str], words: str) -> None:
    result = invoke(server, *arguments, stdin="")
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert server.requests == []


def test_a_server_error_keeps_the_text_so_far(server: Scripted) -> None:
    def abort(request: generation_pb2.GenerateRequest, context: Any) -> Iterator[generation_pb2.GenerateResponse]:
        yield started()
        yield tokens(0, "One", ACCEPTED)
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "max_tokens: expected at most 10, got 99")

    server.script = abort
    result = invoke(server, "p")
    assert (result.exit_code, result.stdout) == (2, "One\n")
    assert result.stderr == "Error: max_tokens: expected at most 10, got 99\n"


def _command(server: Scripted) -> list[str]:
    return [sys.executable, "-m", "paceline.cli.main", "generate", "p", "--address", server.address]


def test_ctrl_c_cancels_prints_what_came_and_exits_130(server: Scripted) -> None:
    def hang(request: generation_pb2.GenerateRequest, context: Any) -> Iterator[generation_pb2.GenerateResponse]:
        yield started()
        yield tokens(0, "One", ACCEPTED)
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait(30)

    server.script = hang
    with subprocess.Popen(_command(server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = process.stdout.read(3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (seen + out, process.returncode) == ("One\n", 130)
    assert err.startswith("1 tokens in ")
    assert err.endswith("interrupted\n")
    assert server.cancelled.wait(10)


@pytest.mark.parametrize(("variables", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_a_terminal_gets_colours_unless_told_otherwise(
    server: Scripted, variables: dict[str, str], colored: bool
) -> None:
    leader, follower = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    environment |= {"TERM": "xterm", **variables}
    done = subprocess.run(
        _command(server), stdout=follower, stderr=subprocess.PIPE, env=environment, timeout=30, check=True
    )
    os.close(follower)
    out = os.read(leader, 10_000).decode()
    os.close(leader)
    green_two = "\x1b[32m two\x1b[0m\x1b[33m three\x1b[0m"
    assert (green_two in out) is colored
    assert ("\x1b" in out) is colored
    assert ("accepted draft" in done.stderr.decode()) is colored


def test_nobody_there_is_one_line_that_says_what_to_do() -> None:
    result = CliRunner().invoke(paceline, ["generate", "p", "--address", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert result.stderr.endswith("is a cluster running there? `paceline up` starts one\n")
    assert len(result.stderr.splitlines()) == 1
