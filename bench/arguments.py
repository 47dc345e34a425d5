"""What every bench understands on its command line, and the prompts it runs on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

COMPUTE_PROMPTS = "target.share_prefixes=false"
"""A setting for benches that ask the same prompt again and mean to see it computed again."""
DRAFTS_COME = "router.draft_deadline_ms=1000"
"""A setting for benches of drafts: a machine others use holds one up now and then."""
PROMPTS = Path(__file__).parent / "prompts"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with ``--check``, ``--model`` and ``--threads``; a bench adds its own."""
    out = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--check", action="store_true", help="exit non-zero when a bar is missed")
    out.add_argument("--model", default="demo", help="the target (default: demo)")
    out.add_argument("--threads", type=int, default=2, help="CPU threads of every engine (default: 2)")
    return out


def prompts(folder: Path = PROMPTS) -> dict[str, list[str]]:
    """Kind -> first turns, from a folder of JSONL files with ``{"turns": […]}`` lines."""
    return {path.stem: list(_turns(path)) for path in sorted(folder.glob("*.jsonl"))}


def _turns(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield json.loads(line)["turns"][0]


def mixed(count: int, folder: Path = PROMPTS) -> list[str]:
    """The first ``count`` prompts, taking one of each kind in turn.

    Raises ValueError if the folder holds fewer.
    """
    kinds = list(prompts(folder).values())
    longest = max((len(kind) for kind in kinds), default=0)
    out = [kind[i] for i in range(longest) for kind in kinds if i < len(kind)]
    if len(out) < count:
        raise ValueError(f"{folder}: expected at least {count} prompts, got {len(out)}")
    return out[:count]
