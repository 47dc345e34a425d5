"""The ``paceline`` command. A command's module is imported when the command runs, so that ``--help`` is instant."""

from __future__ import annotations

import importlib
import os
import sys
from types import TracebackType

import click

COMMANDS = {
    "up": "Start a cluster on this machine and keep it running.",
    "generate": "Generate one answer, streamed.",
    "chat": "Talk to a model.",
    "eval": "Measure how well drafters do on prompts of yours.",
    "status": "Show models, workers and counters of a running cluster.",
    "cache": "Capture a target's hidden states for training; plan and verify such caches.",
    "train": "Train a drafter on a target cache.",
    "drafter": "Export and import trained drafters: vLLM's speculators, DeepSpec; import EAGLE-3.",
    "models": "Fetch and list models on this machine.",
    "doctor": "Check whether this machine is ready.",
}


class Commands(click.Group):
    """Command NAME is the attribute ``command`` of ``paceline.cli.NAME``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"paceline.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="paceline")
def paceline() -> None:
    """Distributed speculative decoding: draft workers guess, target verifiers decide, output is lossless."""


def main() -> None:
    """The console script."""
    if not os.environ.get("PACELINE_TRACEBACK"):
        sys.excepthook = _tell_bug
    paceline.main(prog_name="paceline")


def _tell_bug(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    click.echo(f"Error: a bug of paceline: {kind.__name__}: {error}; PACELINE_TRACEBACK=1 shows where", err=True)


if __name__ == "__main__":
    main()
