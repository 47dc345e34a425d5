"""Conversions that need transformers, as a program of their own so that their callers do not.

python -m paceline.engine.convert gguf SOURCE.gguf TARGET_FOLDER
python -m paceline.engine.convert tokenizer SOURCE_FOLDER TARGET_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

# GGUF's general.file_type for unquantised files; anything else is dequantised to bfloat16.
_EXACT_DTYPES = {0: torch.float32, 1: torch.float16}


def convert_gguf(source: Path, target: Path) -> None:
    """Write a GGUF file's model and tokenizer as a folder of safetensors and tokenizer.json."""
    where, dtype = str(source.parent), _stored_dtype(source)
    tokenizer: Any = AutoTokenizer.from_pretrained(where, gguf_file=source.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=source.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def convert_tokenizer(source: Path, target: Path) -> None:
    """Write a folder's tokenizer as tokenizer.json, whatever form it had."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(source))
    tokenizer.save_pretrained(target)


def _stored_dtype(source: Path) -> torch.dtype:
    field = gguf.GGUFReader(source).fields.get("general.file_type")
    return _EXACT_DTYPES.get(int(field.contents()) if field else -1, torch.bfloat16)


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    verbs = {"gguf": convert_gguf, "tokenizer": convert_tokenizer}
    if len(arguments) != 3 or arguments[0] not in verbs:
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 2
    verb, source, target = arguments
    verbs[verb](Path(source), Path(target))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
