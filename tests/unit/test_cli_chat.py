"""``paceline chat`` against a scripted server."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from paceline.cli.main import paceline
from paceline.v1 import generation_pb2

from tests.unit.cli_scripted import ACCEPTED, Scripted, answer, started, tokens

TEXT = "One two three four five six\n"


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as server:
        yield server


def said(request: generation_pb2.GenerateRequest) -> list[str]:
    return [f"{message.role}: {message.content}" for message in request.chat.messages]


def test_the_whole_conversation_is_sent_until_it_is_reset(server: Scripted) -> None:
    lines = "Hello\n\nAgain\n/nonsense\n/reset\nAnew\n/quit\nnever sent\n"
    result = CliRunner().invoke(paceline, ["chat", "--address", server.address, "--system", "Be brief"], input=lines)
    assert (result.exit_code, result.stdout) == (0, TEXT * 3)
    assert [said(request) for request in server.requests] == [
        ["system: Be brief", "user: Hello"],
        ["system: Be brief", "user: Hello", "assistant: One two three four five six", "user: Again"],
        ["system: Be brief", "user: Anew"],
    ]
    assert "/nonsense: expected /reset or /quit" in result.stderr
    assert result.stderr.count("τ 2.50") == 3


def test_an_error_is_told_and_the_conversation_goes_on(server: Scripted) -> None:
    def once(request: generation_pb2.GenerateRequest, context: Any) -> Iterator[generation_pb2.GenerateResponse]:
        server.script = answer
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "messages: expected shorter ones, got long ones")
        yield started()

    server.script = once
    result = CliRunner().invoke(paceline, ["chat", "--address", server.address], input="Hello\nAgain\n")
    assert (result.exit_code, result.stdout.lstrip()) == (0, TEXT)
    assert "Error: messages: expected shorter ones" in result.stderr
    assert said(server.requests[-1]) == ["user: Again"]


def test_ctrl_c_cancels_the_answer_and_twice_leaves(server: Scripted) -> None:
    def hang(request: generation_pb2.GenerateRequest, context: Any) -> Iterator[generation_pb2.GenerateResponse]:
        yield started()
        yield tokens(0, "One", ACCEPTED)
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait(30)

    server.script = hang
    command = [sys.executable, "-m", "paceline.cli.main", "chat", "--address", server.address]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("Hello\n")
        process.stdin.flush()
        assert process.stdout.read(3) == "One"
        process.send_signal(signal.SIGINT)
        while "interrupted" not in process.stderr.readline():
            pass  # bounded by the test's timeout
        process.send_signal(signal.SIGINT)
        process.wait(20)
    assert process.returncode == 130
    assert server.cancelled.wait(10)
