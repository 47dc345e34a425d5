"""``paceline drafter``: trained drafters to and from the folders of others."""

from __future__ import annotations

import os
import sys

import click


@click.command("drafter", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Export and import trained drafters; `--help` tells the options."""
    # Weights are read with torch, which this process never loads: it becomes the command.
    os.execv(sys.executable, [sys.executable, "-m", "paceline.drafters.hidden", *arguments])  # noqa: S606
