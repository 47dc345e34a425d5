"""``paceline status``."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import click
import httpx
from paceline_client import Client, RetryPolicy
from paceline_client import PacelineError as ClientError
from rich.console import Console
from rich.table import Table

from paceline.cli.errors import Failure, told

TIMEOUT_S = 5.0


@click.command("status")
@click.option("--address", metavar="HOST:PORT", help="gRPC ingress. [default: $PACELINE_ADDRESS or 127.0.0.1:9000]")
@click.option("--api-key", metavar="KEY", help="[default: $PACELINE_API_KEY]")
@click.option("--http", default="http://127.0.0.1:8000", show_default=True, metavar="URL", help="HTTP ingress.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@told
def command(*, address: str | None, api_key: str | None, http: str, as_json: bool) -> None:
    """Show models, workers and counters of a running cluster. What can't be reached is left out, and told."""
    status = gather(address, api_key, http)
    if as_json:
        click.echo(json.dumps(status, ensure_ascii=False))
    if status["models"] is None and status["health"] is None:
        raise Failure(f"nothing answers: {'; '.join(status['problems'])}; start a cluster with `paceline up`")
    if not as_json:
        _print(status)


def gather(address: str | None, api_key: str | None, http: str) -> dict[str, Any]:
    """Everything both ingresses tell; None for what one of them didn't."""
    problems: list[str] = []
    status: dict[str, Any] = {"models": None, "health": None, "router": None, "problems": problems}
    with Client(address, api_key=api_key, retry=RetryPolicy(attempts=1)) as client:
        try:
            status["models"] = [dataclasses.asdict(model) for model in client.models(timeout=TIMEOUT_S)]
        except ClientError as error:
            problems.append(f"gRPC: {error}")
    api_key = api_key or os.environ.get("PACELINE_API_KEY")  # as the client does
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(base_url=http, timeout=TIMEOUT_S, headers=headers) as web:
        for key, path in (("health", "/healthz"), ("router", "/internal/status")):
            try:
                status[key] = web.get(path).raise_for_status().json()
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                problems.append(f"{http}{path}: {str(error) or type(error).__name__}".partition("\n")[0])
    return status


def _print(status: Mapping[str, Any]) -> None:
    console = Console()
    for model in status["models"] or ():
        drafters = ", ".join(model["drafters"]) or "none"
        click.echo(
            f"{model['id']}: {model['targets']} target verifiers, {model['drafts']} draft workers up; "
            f"drafters {drafters}; context {model['context_length']}; class {model['numerics_class'][:12]}"
        )
    for title, key in (("health", "health"), ("router", "router")):
        if status[key] is not None:
            console.print(_table(title, status[key]))
    for problem in status["problems"]:
        click.echo(f"warning: {problem}", err=True)


def _table(title: str, values: Any) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("field", no_wrap=True)
    table.add_column("value", overflow="fold")
    for field, value in _flatten("", values):
        if not field.startswith("models["):  # told above, from ListModels
            table.add_row(field, value)
    return table


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Whatever a router tells, whichever its version: one row per leaf."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        for index, inner in enumerate(value):
            yield from _flatten(f"{prefix}[{index}]", inner)
    elif isinstance(value, list):
        yield prefix, ", ".join(str(inner) for inner in value)
    else:
        yield prefix, f"{value:g}" if isinstance(value, float) else str(value)
