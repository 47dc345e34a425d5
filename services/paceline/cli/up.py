"""``paceline up``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from paceline.cli.answer import answer_of, colored, show, tell_closing
from paceline.cli.errors import FAILED, INTERRUPTED, Failure, told
from paceline.engine import models
from paceline.runtime.child import NEVER, Restart, State
from paceline.runtime.cluster import ClusterSpec, LocalCluster
from paceline.speculation.errors import Unavailable

# Little to guess in the first, much in the second: speculation gains as much as a text allows.
DEMO_PROMPTS = (
    "Explain in two sentences why a group of cyclists riding in a line is faster than one alone.",
    "Write a short song about cycling with a chorus that comes three times.",
)
DEMO_TOKENS = 96
DEMO_TIMEOUT_S = 120.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command("up")
@click.option("--drafts", default=1, show_default=True, help="Draft workers.")
@click.option("--targets", default=1, show_default=True, help="Target verifiers.")
@click.option("--routers", default=1, show_default=True, help="Router processes.")
@click.option("--model", default="demo", show_default=True, help="Target: demo, a folder, a GGUF file, a hub id.")
@click.option("--draft-model", help="A draft model beside the other drafters. [default: none]")
@click.option(
    "--drafter-checkpoint", metavar="FOLDER",
    help="Hidden-state drafter of the target, or none. [default: the one shipped for the demo model]",
)  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of both models.")
@click.option("--weights", type=click.Choice(["int8", "int4"]), help="Quantise the target's weights.")
@click.option("--draft-weights", type=click.Choice(["int8", "int4"]), help="Quantise the draft model's weights.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of each worker.")
@click.option("--http-port", default=8000, show_default=True, help="0 takes a free one.")
@click.option("--grpc-port", default=9000, show_default=True, help="0 takes a free one.")
@click.option("--config", metavar="FILE", help="YAML with the sections target, draft and router.")
@click.option("--set", "settings", multiple=True, metavar="SERVICE.KEY=VALUE", help="One field; wins over the file.")
@click.option("--log-dir", type=click.Path(file_okay=False, path_type=Path), help="[default: a temporary folder]")
@click.option("--restart/--no-restart", default=True, help="Restart dead workers. [default: restart]")
@click.option("--demo", is_flag=True, help="Answer two prompts, then stop.")
@click.option("--no-color", is_flag=True, help="No colours in the demo's answers.")
@told
def command(*, restart: bool, demo: bool, no_color: bool, **fields: Any) -> None:
    """Start a cluster on this machine: draft workers, target verifiers and a router.

    Standard output gets one line when it serves: `paceline ready http=URL grpc=HOST:PORT logs=FOLDER`. Ctrl-C stops
    everything; a second Ctrl-C kills everything at once.
    """
    spec = ClusterSpec(**fields, restart=Restart() if restart else NEVER)
    sys.exit(asyncio.run(run(spec, demo=demo, color=colored(not no_color))))


async def run(spec: ClusterSpec, *, demo: bool, color: bool) -> int:
    """Bring a cluster up and keep it until a signal, or for the demo; returns the exit code."""
    began = time.monotonic()
    progress = _Progress(began)
    cluster = LocalCluster(spec, observe=progress)
    ready = False
    with _signals(cluster, progress) as seen:
        try:
            await _fetch(cluster)
            async with cluster:
                ready = True
                click.echo(f"paceline ready http={cluster.http_url} grpc={cluster.grpc_address} logs={cluster.log_dir}")
                if demo:
                    await _demo(cluster.grpc_address, color)
                else:
                    click.echo(f"{time.monotonic() - began:.1f} s; Ctrl-C stops it", err=True)
                    raise Unavailable(await cluster.failed())
        except asyncio.CancelledError:
            if not seen:
                raise
            click.echo("stopped", err=True)
            return 0 if ready and not demo else INTERRUPTED
    click.echo(f"demo: started, answered and stopped in {time.monotonic() - began:.1f} s", err=True)
    return 0


async def _fetch(cluster: LocalCluster) -> None:
    """Fetch models first: a download takes longer than a worker may take to get ready."""
    for name in cluster.models:
        if name.partition(":")[0] != "fake":
            await asyncio.to_thread(models.resolve, name, lambda line: click.echo(line, err=True))


async def _demo(address: str, color: bool) -> None:
    for prompt in DEMO_PROMPTS:
        click.echo(f"\n> {prompt}", err=True)
        with answer_of(address, prompt, temperature=0, max_tokens=DEMO_TOKENS, timeout=DEMO_TIMEOUT_S) as stream:
            # A thread, so that the loop sees signals and dead processes; closing the stream ends it.
            shown = await asyncio.to_thread(show, stream, color=color)
        tell_closing(shown, color=color)
        if not shown.tokens:
            raise Failure("demo: expected an answer, got no token; see the logs")


@contextlib.contextmanager
def _signals(cluster: LocalCluster, progress: _Progress) -> Iterator[list[int]]:
    """The first signal cancels the task, which stops the cluster; the second kills every process at once."""
    seen: list[int] = []
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def handle(number: int) -> None:
        seen.append(number)
        if len(seen) == 1:
            click.echo("stopping; once more kills everything at once", err=True)
            task.cancel()
            return
        cluster.kill_now()
        progress.stop()
        os._exit(INTERRUPTED if number == signal.SIGINT else FAILED)

    for number in _SIGNALS:
        loop.add_signal_handler(number, handle, number)
    try:
        yield seen
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


class _Progress:
    """Tells on standard error what each process does, and when; on a terminal with a spinner while one loads."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._loading: list[str] = []
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("")

    def __call__(self, name: str, state: State, detail: str) -> None:
        self._loading = [each for each in self._loading if each != name]
        if state is State.STARTING:
            self._loading.append(name)
        words = {State.STARTING: "starting", State.STOPPED: "stopped", State.FAILED: "gave up"}.get(state, state.value)
        first = detail.partition("\n")[0]
        line = f"{time.monotonic() - self._began:6.1f} s  {name}: {words}{f' ({first})' if first else ''}"
        self._console.print(line, markup=False, soft_wrap=True)
        if self._loading:
            self._status.update(f"loading {', '.join(self._loading)}")
            self._status.start()
        else:
            self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._status.stop()
