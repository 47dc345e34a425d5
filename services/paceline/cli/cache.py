"""``paceline cache``: what drafters are trained on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from paceline.cache.target import TargetCache
from paceline.cache.target.verify import Report, verify
from paceline.cli.errors import Failure, told

_FOLDER = click.Path(path_type=Path)
MOST_TOLD = 20  # corrupt samples named; the rest are counted


@click.group("cache")
def command() -> None:
    """Target caches: a target's answers with its hidden states, in DeepSpec's format."""


@command.command("capture", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def capture(arguments: tuple[str, ...]) -> None:
    """Let a target answer prompts and keep its hidden states; `--help` tells the options."""
    # The job computes with torch, which this process never loads: it becomes the job.
    os.execv(sys.executable, [sys.executable, "-m", "paceline.training.capture", *arguments])  # noqa: S606


@command.command("verify")
@click.argument("folder", type=_FOLDER)
@click.option("--root", "roots", multiple=True, type=_FOLDER, help="Where to look for shards that moved. Repeatable.")
@told
def verify_(folder: Path, roots: tuple[Path, ...]) -> None:
    """Read all of the cache in FOLDER and name what is corrupt. Fails if anything is."""
    cache = TargetCache.open(folder, *roots)
    console = Console(stderr=True)
    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress("reading", *columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=int(cache.lengths.sum()) * cache.manifest.shape.token_bytes)
        report = verify(cache, lambda size: bar.advance(task, size))
    _tell(report)
    if not report.sound:
        raise Failure(f"{folder}: {len(report.corrupt)} of {report.samples} samples are lost; readers leave them out")


def _tell(report: Report) -> None:
    for error in report.corrupt[:MOST_TOLD]:
        click.echo(str(error))
    if len(report.corrupt) > MOST_TOLD:
        click.echo(f"… and {len(report.corrupt) - MOST_TOLD} more")
    for shard in report.shards:
        click.echo(f"{shard.name}: {shard.what}")
    checked = "checked" if report.has_checksums else "in place; the cache has no checksums to check them by"
    click.echo(f"{report.samples} samples, {report.size:,} bytes {checked}")
