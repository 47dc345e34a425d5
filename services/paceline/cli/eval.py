"""``paceline eval``."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import click
from paceline_client import AsyncClient, Model, Speculation
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paceline.cli.answer import speculation_of
from paceline.cli.asking import Answered, Ask, answer, read_prompts
from paceline.cli.errors import INTERRUPTED, BadInput, told
from paceline.cli.eval_report import PLAIN, Evaluation, Prompt
from paceline.speculation.errors import InvalidRequest

MOST_TOGETHER = 64
Step = Callable[[], object]


@click.command("eval")
@click.argument("prompts", type=click.Path(path_type=Path))
@click.option("--address", metavar="HOST:PORT", help="gRPC ingress. [default: $PACELINE_ADDRESS or 127.0.0.1:9000]")
@click.option("--api-key", metavar="KEY", help="[default: $PACELINE_API_KEY]")
@click.option("--model", default="", help="A model of `paceline status`; by default the only one.")
@click.option("--drafter", "drafters", multiple=True, help="May be repeated; by default all the model has.")
@click.option("--limit", type=click.IntRange(0), default=40, help="Prompts of each file; 0 for all. [default: 40]")
@click.option("--turns", type=click.IntRange(1), default=1, help="Turns of each conversation. [default: 1]")
@click.option("--max-tokens", type=click.IntRange(1), default=128, help="Of each answer. [default: 128]")
@click.option("--speculation", default="7", metavar="K|auto", help="Draft K tokens a round, or what pays. [default: 7]")
@click.option("--temperature", type=float, default=0.0, help="[default: 0]")
@click.option("--verification-mode", type=click.Choice(["agreement", "rejection"]), default="agreement")
@click.option("--together", type=click.IntRange(1, MOST_TOGETHER), default=1, help="Sessions at once. [default: 1]")
@click.option("--markdown", is_flag=True, help="Print tables as Markdown.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write all figures there.")
@click.option("--plots", type=click.Path(path_type=Path), metavar="FOLDER", help="Draw acceptance by position (PNG).")
@told
def command(
    prompts: Path,
    *,
    address: str | None,
    api_key: str | None,
    model: str,
    drafters: tuple[str, ...],
    limit: int,
    turns: int,
    max_tokens: int,
    speculation: str,
    temperature: float,
    verification_mode: str,
    together: int,
    markdown: bool,
    json_file: Path | None,
    plots: Path | None,
) -> None:
    """Measure drafters of a running cluster on PROMPTS, a folder of .jsonl files with {"turns": ["…"]} lines.

    Every file is a domain. Every prompt is answered without drafts, then with each drafter. Ctrl-C ends it and reports
    on the prompts that all have answered.
    """
    if plots is not None:
        _require_plotting()
    mode = cast(Literal["agreement", "rejection"], verification_mode)
    ask = Ask(max_tokens, temperature, mode, turns, model)
    if speculation == "off":
        raise InvalidRequest("--speculation", expected="auto or a whole number K", got=speculation)
    speculation_of(speculation, "")  # refuses what it is not
    evaluation = Evaluation(speculation=speculation, together=together, ask=ask)
    evaluation.prompts = [
        Prompt(domain, each) for domain, found in read_prompts(prompts, limit).items() for each in found
    ]
    interrupted = False
    try:
        asyncio.run(_run(evaluation, address, api_key, drafters))
    except KeyboardInterrupt:
        interrupted = True
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None  # the first answer that could not be had; it says why
    if not evaluation.complete:
        raise KeyboardInterrupt
    click.echo(evaluation.text(markdown=markdown))
    if json_file is not None:
        json_file.write_text(json.dumps(evaluation.record(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if plots is not None:
        from paceline.cli.eval_plots import draw  # noqa: PLC0415  # matplotlib takes a second, and is optional

        for path in draw(evaluation, plots):
            click.echo(path, err=True)
    if interrupted:
        sys.exit(INTERRUPTED)


def _require_plotting() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise BadInput("--plots: expected matplotlib; pip install 'paceline[eval]' brings it")


async def _run(evaluation: Evaluation, address: str | None, api_key: str | None, drafters: Sequence[str]) -> None:
    async with AsyncClient(address, api_key=api_key) as client:
        model = _model(await client.models(), evaluation.ask.model)
        unknown = [name for name in drafters if name not in model.drafters]
        if unknown or not model.drafters:
            offered = ", ".join(model.drafters) or "none just now"
            raise InvalidRequest("--drafter", expected=f"drafters of {model.id} ({offered})", got=", ".join(unknown))
        evaluation.begin(model, tuple(dict.fromkeys(drafters)) or model.drafters)
        places = asyncio.Semaphore(evaluation.together)
        with _progress(len(evaluation.prompts) * len(evaluation.ways)) as step:
            async with asyncio.TaskGroup() as group:
                for number, prompt in enumerate(evaluation.prompts):
                    await places.acquire()
                    group.create_task(_one(client, evaluation, prompt, number, step)).add_done_callback(
                        lambda _: places.release()
                    )


async def _one(client: AsyncClient, evaluation: Evaluation, prompt: Prompt, number: int, step: Step) -> None:
    """All ways of one prompt, one after the other: what disturbs the machine disturbs them alike."""
    ask = replace(evaluation.ask, seed=number)  # sessions that share steps should not share noise
    answers: dict[str, Answered] = {}
    for way in evaluation.ways:
        speculation = Speculation("off") if way == PLAIN else speculation_of(evaluation.speculation, way)
        answers[way] = await answer(client, prompt.turns, speculation, ask)
        step()
    prompt.answers = answers


def _model(models: Sequence[Model], wanted: str) -> Model:
    found = [model for model in models if wanted in {"", model.id}]
    if len(found) != 1:
        names = ", ".join(model.id for model in models) or "none"
        raise InvalidRequest("--model", expected=f"one of {names}", got=wanted or "no name")
    return found[0]


@contextmanager
def _progress(total: int) -> Iterator[Step]:
    """A bar on standard error, where somebody watches."""
    console = Console(stderr=True)
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
