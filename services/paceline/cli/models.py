"""``paceline models``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
from rich.console import Console

from paceline.cli.errors import told
from paceline.engine import models


@click.group("models")
def command() -> None:
    """Fetch and list models on this machine."""


@command.command("fetch")
@click.argument("name")
@told
def fetch(name: str) -> None:
    """Make NAME available: `demo`, a model folder, a GGUF file or a Hugging Face id. Prints its folder."""
    began = time.monotonic()
    console = Console(stderr=True)
    with console.status(f"fetching {name}") as status:

        def say(line: str) -> None:
            status.update(line)
            if not console.is_terminal:
                click.echo(line, err=True)

        folder = models.fetch(name, say)
    click.echo(folder)
    if sys.stderr.isatty():
        click.echo(f"{name}: {_mebibytes(folder):.0f} MiB, {time.monotonic() - began:.1f} s", err=True)


@command.command("list")
@told
def list_() -> None:
    """List the models Paceline prepared on this machine; `paceline status` lists those a cluster serves."""
    root = models.cache_root() / "models"
    folders = sorted(path for path in root.glob("[!.]*") if path.is_dir())
    for folder in folders:
        click.echo(f"{folder.name}\t{_mebibytes(folder):.0f} MiB\t{folder}")
    if not folders:
        click.echo(f"no models in {root}; get one with `paceline models fetch demo`", err=True)


def _mebibytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
