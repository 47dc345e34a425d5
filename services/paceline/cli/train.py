"""``paceline train``: a drafter from a target cache."""

from __future__ import annotations

import click

from paceline.cli.become import become


@click.command("train", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Train a drafter on a target cache; `--help` tells the options."""
    become("paceline.training", arguments)
