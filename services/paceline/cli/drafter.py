"""``paceline drafter``: trained drafters to and from the folders of others."""

from __future__ import annotations

import click

from paceline.cli.become import become


@click.command("drafter", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Export and import trained drafters; `--help` tells the options."""
    become("paceline.drafters.hidden", arguments)
