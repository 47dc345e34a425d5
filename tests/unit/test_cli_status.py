"""``paceline status`` with both ingresses, with one, and with none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result
from paceline.cli.main import paceline

from tests.unit.cli_scripted import Scripted

ANSWERS: dict[str, Any] = {
    "/healthz": {"status": "ok"},
    "/internal/status": {
        "sessions": 3,
        "rounds": {"total": 40, "missed": 1},
        "workers": [{"address": "a:1", "up": True}],
        "ms": [0.5, 1],
    },
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(ANSWERS.get(self.path)).encode()
        self.send_response(200 if self.path in ANSWERS else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Nothing: the test's output stays clean."""


@pytest.fixture
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def status(address: str, http: str, *more: str) -> Result:
    return CliRunner().invoke(paceline, ["status", "--address", address, "--http", http, *more])


def test_json_has_everything(web: str) -> None:
    with Scripted() as server:
        result = status(server.address, web, "--json")
    value = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (value["models"][0]["targets"], value["models"][0]["drafts"]) == (1, 2)
    assert value["health"] == {"status": "ok"}
    assert value["router"]["rounds"] == {"total": 40, "missed": 1}
    assert value["problems"] == []


def test_people_get_a_line_per_model_and_a_row_per_counter(web: str) -> None:
    with Scripted() as server:
        result = status(server.address, web)
    assert "m: 1 target verifiers, 2 draft workers up; drafters ngram, model; context 2048" in result.stdout
    rows = [" ".join(line.strip("│┃ ").replace("│", " ").split()) for line in result.stdout.splitlines()]
    assert {"rounds.total 40", "workers[0].up True", "ms 0.5, 1", "status ok"} <= set(rows)


def test_one_ingress_is_enough(web: str) -> None:
    result = status("127.0.0.1:1", web, "--json")
    assert (result.exit_code, json.loads(result.stdout)["models"]) == (0, None)
    assert json.loads(result.stdout)["problems"][0].startswith("gRPC: ")
    with Scripted() as server:
        result = status(server.address, "http://127.0.0.1:1")
    assert result.exit_code == 0
    assert "warning: http://127.0.0.1:1/healthz: " in result.stderr


def test_no_cluster_is_a_failure_that_says_what_to_do() -> None:
    result = status("127.0.0.1:1", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "Error: nothing answers: " in result.stderr
    assert result.stderr.endswith("start a cluster with `paceline up`\n")
