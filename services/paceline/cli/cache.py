"""``paceline cache``: what drafters are trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from paceline.cache.target import TargetCache
from paceline.cache.target.layout import Shape
from paceline.cache.target.plan import DEEPSPEC_LAYERS, DEEPSPEC_SOURCE, DEEPSPEC_TOKENS, KNOWN, Plan, model_size
from paceline.cache.target.verify import Report, verify
from paceline.cache.target.writer import SHARD_BYTES
from paceline.cli.become import become
from paceline.cli.errors import Failure, told
from paceline.speculation.errors import InvalidRequest

_FOLDER = click.Path(path_type=Path)
MOST_TOLD = 20  # corrupt samples named; the rest are counted


@click.group("cache")
def command() -> None:
    """Target caches: a target's answers with its hidden states, in DeepSpec's format."""


@command.command("capture", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def capture(arguments: tuple[str, ...]) -> None:
    """Let a target answer prompts and keep its hidden states; `--help` tells the options."""
    become("paceline.training.capture", arguments)


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


@command.command(
    "plan",
    help=f"""Tell how large a cache will be, before a byte is written. Needs no network.

Sizes are known of {", ".join(KNOWN)}, and read from a local folder's config.json. Without --tokens or --samples,
DeepSpec's default data is assumed: {DEEPSPEC_TOKENS / 1e9:.3f} billion tokens, which is what the 38 TB that its
README tells for Qwen/Qwen3-4B come to; 5 layers and the last hidden states, 2 bytes a number, and 6 bytes of token and
masks make 30,726 bytes a token there.""",
)
@click.option("--model", default="demo", show_default=True, help="The target.")
@click.option("--hidden-size", type=click.IntRange(1), help="Of the target, if it is not known.")
@click.option("--layers", default=DEEPSPEC_LAYERS, show_default=True, type=click.IntRange(1), help="Layers kept.")
@click.option("--tokens", type=click.IntRange(1), help="Tokens of all samples.")
@click.option("--samples", type=click.IntRange(1), help="Samples; with --length, instead of --tokens.")
@click.option("--length", type=click.IntRange(1), help="Tokens of a sample, on average.")
@click.option("--shard-bytes", default=SHARD_BYTES, show_default=True, type=click.IntRange(1), help="Size of a shard.")
@click.option("--out", type=_FOLDER, help="Folder to be written to: fails if its disk has too little room.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@told
def plan(
    *, model: str, hidden_size: int | None, layers: int, tokens: int | None, samples: int | None, length: int | None,
    shard_bytes: int, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """See above."""
    depth, width = (None, hidden_size) if hidden_size else model_size(model)
    if depth is not None and layers > depth + 1:
        raise InvalidRequest("layers", expected=f"at most {depth + 1}, the embedding included", got=layers)
    planned = Plan(Shape(layers, width), _tokens(tokens, samples, length), samples or 0, shard_bytes)
    source = None if tokens or samples else DEEPSPEC_SOURCE
    free = None if out is None else shutil.disk_usage(_existing(out)).free
    if as_json:
        click.echo(json.dumps(_facts(planned, free, source), ensure_ascii=False))
    else:
        click.echo(f"{model}: {layers} layers and the last hidden states, {width} wide, in bf16")
        click.echo(f"a token    {planned.shape.token_bytes:,} bytes")
        click.echo(f"tokens     {planned.tokens:,}{f': {source}' if source else ''}")
        click.echo(
            f"size       {_size(planned.total_bytes)} in {planned.shards:,} shards of {shard_bytes / 2**30:g} GiB"
        )
        if free is not None:
            click.echo(f"free       {_size(free)} at {out}")
    if free is not None and free < planned.total_bytes:
        raise Failure(f"{out}: {_size(planned.total_bytes - free)} too little; several --root share a cache out")


def _tokens(tokens: int | None, samples: int | None, length: int | None) -> int:
    if tokens is not None:
        return tokens
    if (samples is None) != (length is None):
        raise InvalidRequest("samples", expected="--samples and --length together", got=f"{samples} and {length}")
    return samples * length if samples and length else DEEPSPEC_TOKENS


def _facts(planned: Plan, free: int | None, source: str | None) -> dict[str, int | str | None]:
    return {
        "token_bytes": planned.shape.token_bytes, "tokens": planned.tokens, "samples": planned.samples or None,
        "data_bytes": planned.data_bytes, "total_bytes": planned.total_bytes, "shards": planned.shards, "free": free,
        "tokens_source": source,
    }  # fmt: skip


def _size(count: int) -> str:
    """Bytes in the decimal unit that leaves one to three digits before the point."""
    unit = min(4, max(0, (len(str(count)) - 1) // 3))
    return f"{count / 1000**unit:.3g} {('B', 'KB', 'MB', 'GB', 'TB')[unit]}"


def _existing(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _tell(report: Report) -> None:
    for error in report.corrupt[:MOST_TOLD]:
        click.echo(str(error))
    if len(report.corrupt) > MOST_TOLD:
        click.echo(f"… and {len(report.corrupt) - MOST_TOLD} more")
    for shard in report.shards:
        click.echo(f"{shard.name}: {shard.what}")
    checked = "checked" if report.has_checksums else "in place; the cache has no checksums to check them by"
    click.echo(f"{report.samples} samples, {report.size:,} bytes {checked}")
