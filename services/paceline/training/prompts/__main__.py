"""``python -m paceline.training.prompts --count N --seed S --out FOLDER``: one JSON lines file per domain."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from paceline.speculation.errors import InvalidRequest
from paceline.training.prompts import DOMAINS, prompts


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the prompts; returns the exit code. A domain's file appears whole or not at all."""
    parser = argparse.ArgumentParser(prog="python -m paceline.training.prompts", description="Write training prompts.")
    parser.add_argument("--count", type=int, required=True, help="prompts per domain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder, made if missing")
    parser.add_argument("--domain", action="append", choices=DOMAINS, help="only this one; may be repeated")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for domain in chosen.domain or DOMAINS:
        try:
            path = write(chosen.out, domain, chosen.count, chosen.seed)
        except InvalidRequest as error:
            sys.stderr.write(f"{domain}: {error}\n")
            return 2
        sys.stdout.write(f"{path}: {chosen.count} prompts\n")
    return 0


def write(folder: Path, domain: str, count: int, seed: int) -> Path:
    """Write one domain's prompts to ``<domain>.jsonl`` in the format of ``bench/prompts``.

    Raises InvalidRequest as ``prompts`` does, and OSError.
    """
    path = folder / f"{domain}.jsonl"
    text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in prompts(domain, count, seed))
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
