"""``paceline train``: a drafter from a target cache."""

from __future__ import annotations

import os
import sys

import click


@click.command("train", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Train a drafter on a target cache; `--help` tells the options."""
    # Training computes with torch, which this process never loads: it becomes the training.
    os.execv(sys.executable, [sys.executable, "-m", "paceline.training", *arguments])  # noqa: S606
