"""One answer on the terminal: the options that shape it, its text as it comes, and the closing line."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Unpack, cast

import click
from paceline_client import Client, GenerateOptions, InvalidRequestError, Speculation, SpeculationMetrics, Stream
from paceline_client import PacelineError as ClientError

from paceline.cli.paint import Painter, legend, use_color

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--address", metavar="HOST:PORT", help="gRPC ingress. [default: $PACELINE_ADDRESS or 127.0.0.1:9000]"),
    click.option("--api-key", metavar="KEY", help="[default: $PACELINE_API_KEY]"),
    click.option("--model", default="", help="A model of `paceline status`; by default the only one."),
    click.option("--temperature", type=float, help="0 is greedy."),
    click.option("--top-k", type=int, help="Keep the K most likely tokens; 0 keeps all."),
    click.option("--top-p", type=float, help="Keep the smallest set of tokens with at least this mass."),
    click.option("--min-p", type=float, help="Drop tokens less likely than this times the likeliest."),
    click.option("--repetition-penalty", type=float, help="Above 1, tokens of prompt or output become less likely."),
    click.option("--presence-penalty", type=float, help="Comes off the logit of every token of the output."),
    click.option("--frequency-penalty", type=float, help="Comes off it as often as the output has the token."),
    click.option("--seed", type=int, help="Fixes the answer; drawn by the server when left out."),
    click.option("--max-tokens", type=int, help="Most tokens to generate."),
    click.option("--min-tokens", type=int, help="No token that ends the answer before so many."),
    click.option("--stop", multiple=True, metavar="TEXT", help="Ends the answer; may be repeated."),
    click.option(
        "--speculation", default="auto", metavar="auto|off|K", help="K: always draft K tokens. [default: auto]"
    ),
    click.option("--drafter", default="", help="A drafter by name; by default the server's choice."),
    click.option(
        "--verification-mode", type=click.Choice(["agreement", "rejection"]), help="How drafts are decided on."
    ),
    click.option("--relaxed-acceptance", type=float, help="Lossy: accept drafts at least so likely, of the likeliest."),
    click.option("--no-color", is_flag=True, help="No colours, as with NO_COLOR or into a pipe."),
)


def answer_options(command: F) -> F:
    """The options of every command that generates."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def request_of(
    *, speculation: str, drafter: str, stop: tuple[str, ...], model: str, **sampling: float | str | None
) -> GenerateOptions:
    """The client's options for what was given on the command line."""
    return cast(
        GenerateOptions,
        {"model": model, "stop": stop, "speculation": speculation_of(speculation, drafter), **sampling},
    )


def speculation_of(text: str, drafter: str) -> Speculation:
    """``auto``, ``off`` or K."""
    if text.isdecimal():
        return Speculation("fixed", int(text), drafter)
    if text not in {"auto", "off"}:
        raise InvalidRequestError.of_field("--speculation", expected="auto, off or a whole number K", got=text)
    return Speculation(cast(Literal["auto", "off"], text), drafter=drafter)


@contextlib.contextmanager
def answer_of(address: str, prompt: str, **options: Unpack[GenerateOptions]) -> Iterator[Stream]:
    """An answer to one user message."""
    options["messages"] = [{"role": "user", "content": prompt}]
    with Client(address) as client:
        yield client.stream(**options)


@dataclass(frozen=True, slots=True)
class Shown:
    """What became of an answer."""

    text: str
    tokens: int
    seconds: float
    first_token_s: float | None
    speculation: SpeculationMetrics | None  # None if it was interrupted
    interrupted: bool = False

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def colored(wanted: bool) -> bool:
    """Whether standard output gets colours."""
    return use_color(terminal=sys.stdout.isatty(), wanted=wanted, environ=os.environ)


def show(stream: Stream, *, color: bool, write: Callable[[str], None] | None = None) -> Shown:
    """Print an answer as it comes. Ctrl-C cancels it; what had come is returned.

    Args:
        write: takes the text; standard output by default.
    """
    painter, write = Painter(color=color), write or _write
    began, first = time.monotonic(), None
    interrupted = False
    try:
        for chunk in stream:
            first = first or time.monotonic() - began
            write(painter.paint(chunk))
    except KeyboardInterrupt:
        interrupted = True
    except ClientError:
        _end_line(stream, write)
        raise
    finally:
        stream.close()
    _end_line(stream, write)
    received = stream.received
    return Shown(received.text, len(received.tokens), time.monotonic() - began, first, stream.speculation, interrupted)


def _end_line(stream: Stream, write: Callable[[str], None]) -> None:
    """The shell's prompt and messages begin on a line of their own."""
    text = stream.received.text
    if text and not text.endswith("\n"):
        write("\n")


def _write(text: str) -> None:
    if text:
        click.echo(text, nl=False)


def closing(shown: Shown) -> str:
    """The closing line: how fast, and what speculation gave."""
    parts = [f"{shown.tokens} tokens in {shown.seconds:.2f} s", f"{shown.tokens_per_second:.1f} tokens/s"]
    if shown.first_token_s is not None:
        parts.append(f"first after {shown.first_token_s:.2f} s")
    if shown.interrupted:
        return " · ".join([*parts, "interrupted"])
    metrics = shown.speculation
    if metrics is not None:
        tau = metrics.accepted_length
        parts.append(f"τ {tau:.2f}" if tau is not None else "τ –")
        parts.append(
            f"accepted {_percent(metrics.accepted_tokens, metrics.drafted_tokens)} of drafted, "
            f"{_percent(metrics.accepted_tokens, metrics.verified_tokens)} of verified"
        )
        parts.append(f"{metrics.rounds} rounds")
    return " · ".join(parts)


def tell_closing(shown: Shown, *, color: bool) -> None:
    """Print the legend of the colours and the closing line on standard error."""
    if color:
        click.echo(legend(), err=True, color=True)
    click.echo(closing(shown), err=True)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def metrics_json(metrics: SpeculationMetrics) -> dict[str, Any]:
    """Speculation metrics with their derived rates."""
    drafted = metrics.drafted_tokens
    return {
        **dataclasses.asdict(metrics),
        "accepted_length": metrics.accepted_length,
        "committed_per_round": metrics.committed_per_round,
        "acceptance_rate_verified": metrics.acceptance_rate,
        "acceptance_rate_drafted": metrics.accepted_tokens / drafted if drafted else None,
    }
