"""``python -m paceline.drafters.hidden``: what ``paceline drafter export`` and ``import`` run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from paceline.drafters.hidden import checkpoint, exchange
from paceline.engine import models
from paceline.speculation.errors import PacelineError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 if it was refused."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "export":
            _export(options)
        else:
            _import(options)
    except PacelineError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stderr.write(f"{options.out}\n")
    return 0


def _export(options: argparse.Namespace) -> None:
    target = models.resolve(options.model, _say)
    drafter = exchange.loaded(options.drafter, target)
    verifier = options.verifier or str(target.folder)
    exchange.export(drafter, options.out, form=options.format, verifier=verifier, dtype=_DTYPES[options.dtype])


def _import(options: argparse.Namespace) -> None:
    target = models.resolve(options.model, _say)
    drafter = exchange.imported(options.drafter, target)
    checkpoint.save(options.out, drafter, dtype=_DTYPES[options.dtype], int8=options.int8)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("paceline drafter", description="Drafters to and from the folders of others.")
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write a drafter as vLLM's speculators or DeepSpec reads it")
    export.add_argument("--format", choices=exchange.FORMATS, default=exchange.SPECULATORS)
    export.add_argument("--verifier", default="", help="the target's name for the reader (default: its folder)")
    own = commands.add_parser("import", help="make a drafter of a speculators, DeepSpec or EAGLE-3 folder")
    own.add_argument("--int8", action="store_true", help="store large matrices in 8 bits")
    for each in (export, own):
        each.add_argument("drafter", type=Path, help="its folder")
        each.add_argument("out", type=Path, help="the folder to write")
        each.add_argument("--model", default=models.DEMO, help="the target: demo, a folder, a GGUF file or a hub id")
        each.add_argument("--dtype", choices=sorted(_DTYPES), default="bfloat16", help="of stored weights")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
