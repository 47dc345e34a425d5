"""``paceline generate``."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any, TextIO

import click
from paceline_client import Client, InvalidRequestError, Stream

from paceline.cli.answer import Shown, answer_options, colored, metrics_json, request_of, show, tell_closing
from paceline.cli.errors import INTERRUPTED, told

MAX_PROMPT_CHARS = 4_000_000


@click.command("generate")
@click.argument("prompt", default="-")
@answer_options
@click.option("--chat/--raw", default=True, help="Send the prompt as a user's message, or as it is. [default: chat]")
@click.option("--logprobs", type=int, help="With --json: log probabilities of tokens and so many likeliest ones.")
@click.option("--json-schema", type=click.File(), metavar="FILE", help="Answer in JSON of this schema.")
@click.option("--regex", metavar="PATTERN", help="Answer in what matches this, as a whole.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the answer is complete.")
@told
def command(
    prompt: str,
    *,
    address: str | None,
    api_key: str | None,
    no_color: bool,
    chat: bool,
    as_json: bool,
    json_schema: TextIO | None,
    **options: Any,
) -> None:
    """Generate one answer to PROMPT, or to standard input if that is - or missing, streamed.

    On a terminal the text is coloured by how each token came to be; within a round the border between colours is
    estimated when it can't be known. The closing line goes to standard error. Ctrl-C keeps what has come.
    """
    text = _prompt(prompt)
    request = request_of(**options)
    if json_schema is not None:
        request["json_schema"] = json_schema.read(MAX_PROMPT_CHARS)
    color = colored(not no_color) and not as_json
    with Client(address, api_key=api_key) as client:
        if chat:
            request["messages"] = [{"role": "user", "content": text}]
        stream = client.stream(None if chat else text, **request)
        shown = show(stream, color=color, write=_discard if as_json else None)
    if as_json:
        click.echo(json.dumps(_object(stream, shown), ensure_ascii=False))
    else:
        tell_closing(shown, color=color)
    if shown.interrupted:
        sys.exit(INTERRUPTED)


def _prompt(prompt: str) -> str:
    if prompt != "-":
        return prompt
    if sys.stdin.isatty():
        click.echo("prompt (end with Ctrl-D):", err=True)
    text = sys.stdin.read(MAX_PROMPT_CHARS + 1)
    if not 0 < len(text) <= MAX_PROMPT_CHARS:
        raise InvalidRequestError.of_field(
            "PROMPT",
            expected=f"1 to {MAX_PROMPT_CHARS} characters on standard input",
            got=f"{min(len(text), MAX_PROMPT_CHARS + 1)} characters",
            hint="give the prompt as an argument or pipe it in",
        )
    return text


def _discard(text: str) -> None:
    """JSON comes whole, at the end."""


def _object(stream: Stream, shown: Shown) -> dict[str, Any]:
    started, finish, usage = stream.started, stream.finish, stream.usage
    return {
        "text": shown.text,
        "request_id": started.request_id if started else None,
        "model": started.model if started else None,
        "seed": started.seed if started else None,
        "finish_reason": finish.reason.value if finish else None,
        "usage": dataclasses.asdict(usage) if usage else None,
        "tokens": [{**dataclasses.asdict(token), "source": token.source.value} for token in stream.received.tokens],
        "speculation": metrics_json(shown.speculation) if shown.speculation else None,
        "seconds": shown.seconds,
        "first_token_s": shown.first_token_s,
        "tokens_per_second": shown.tokens_per_second,
        "interrupted": shown.interrupted,
    }
