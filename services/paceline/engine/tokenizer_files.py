"""The tokenizer of a model folder as bytes: what a target ships so that others turn text into the same tokens."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from paceline.engine import models

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
_AS_IS = (TOKENIZER, CONFIG, TEMPLATE, "special_tokens_map.json")


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """File name → content: tokenizer.json, its configuration, the chat template, and the end-of-sequence ids.

    A tokenizer without a tokenizer.json is converted with transformers; a template kept inside
    tokenizer_config.json becomes a file of its own; ids missing from generation_config.json come from config.json.

    Raises Unavailable if the tokenizer cannot be converted.
    """
    files = _read(folder)
    if TOKENIZER not in files:
        with tempfile.TemporaryDirectory() as converted:
            models.convert_tokenizer(folder, Path(converted))
            files = {**files, **_read(Path(converted))}
    config = json.loads(files.get(CONFIG, b"{}"))
    template = _template(config.get("chat_template"))
    if TEMPLATE not in files and template:
        files[TEMPLATE] = template.encode()
    eos = _eos_token_ids(folder)
    if eos:
        files[GENERATION] = json.dumps({"eos_token_id": eos}).encode()
    return files


def _read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in _AS_IS if (folder / name).is_file()}


def _template(entry: Any) -> str | None:
    """The template in a tokenizer configuration: a string, or a list of named ones of which "default" is meant."""
    if isinstance(entry, list):
        named = {item["name"]: item["template"] for item in entry}
        entry = named.get("default")
    return entry if isinstance(entry, str) else None


def _eos_token_ids(folder: Path) -> list[int]:
    found: set[int] = set()
    for name in (GENERATION, "config.json"):
        path = folder / name
        eos = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        found |= set() if eos is None else {eos} if isinstance(eos, int) else set(eos)
    return sorted(found)
