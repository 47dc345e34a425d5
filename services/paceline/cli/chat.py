"""``paceline chat``."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click
from paceline_client import Client, GenerateOptions
from paceline_client import PacelineError as ClientError

from paceline.cli.answer import answer_options, closing, colored, request_of, show
from paceline.cli.errors import INTERRUPTED, told
from paceline.cli.paint import legend

MAX_MESSAGES = 200
_HELP = "/reset forgets the conversation, /quit leaves; Ctrl-C cancels an answer, twice leaves"


@click.command("chat")
@answer_options
@click.option("--system", help="A system message to begin with.")
@told
def command(*, address: str | None, api_key: str | None, no_color: bool, system: str | None, **options: Any) -> None:
    """Talk to a model; it is sent the whole conversation each time.

    /reset forgets the conversation, /quit leaves. Ctrl-C cancels an answer, twice leaves.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, PLC0415  # line editing and history for input(), where Python was built with it
    color = colored(not no_color)
    if sys.stdin.isatty():
        click.echo(_HELP, err=True)
        if color:
            click.echo(legend(), err=True, color=True)
    with Client(address, api_key=api_key) as client:
        Chat(client, request_of(**options), system, color=color).run()


class Chat:
    """A conversation."""

    def __init__(self, client: Client, request: GenerateOptions, system: str | None, *, color: bool) -> None:
        self._client, self._request, self._color = client, request, color
        self._opening = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = []
        self._interrupts = 0  # in a row

    def run(self) -> None:
        """Read and answer until the end of input, /quit or Ctrl-C twice in a row."""
        while self._interrupts < 2:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._interrupted("Ctrl-C again leaves")
                continue
            if line == "/quit":
                return
            if line:
                self._take(line)
        sys.exit(INTERRUPTED)

    def _take(self, line: str) -> None:
        if line == "/reset":
            self._messages.clear()
            click.echo("forgotten", err=True)
        elif line.startswith("/"):
            click.echo(f"{line.split(maxsplit=1)[0]}: expected /reset or /quit; {_HELP}", err=True)
        else:
            self._answer(line)

    def _answer(self, line: str) -> None:
        asked = [*self._messages, {"role": "user", "content": line}][-MAX_MESSAGES:]
        self._request["messages"] = [*self._opening, *asked]
        try:
            shown = show(self._client.stream(**self._request), color=self._color)
        except ClientError as error:
            click.echo(f"Error: {error}", err=True)
            return
        self._interrupts = 0
        if shown.interrupted:
            self._interrupted("cancelled; Ctrl-C again leaves")
        click.echo(closing(shown), err=True)
        # What was seen of a cancelled answer is part of the conversation.
        self._messages = [*asked, {"role": "assistant", "content": shown.text}]

    def _interrupted(self, words: str) -> None:
        self._interrupts += 1
        click.echo(f"\n{words}", err=True)
