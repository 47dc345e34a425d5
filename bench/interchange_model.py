"""The ``speculators`` package's own model of a drafter's folder, and how its numbers compare with ours."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

TOLERANCE = 1e-3  # of the largest number, in float32


def speculators_model(folder: Path) -> Any:
    """Its own model of that folder, in float32, attending without compiled kernels. Exits without the package."""
    try:
        package = importlib.import_module("speculators.model")
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: run this with a Python that has speculators (make interchange)")
    kinds = importlib.import_module("speculators.config")
    own = kinds.SpeculatorModelConfig.from_pretrained(str(folder))
    own.transformer_layer_config._attn_implementation = "eager"  # noqa: SLF001  # its own way to choose
    return package.SpeculatorModel.from_pretrained(str(folder), config=own).eval().float()


def agree(name: str, what: str, ours: Tensor, theirs: Tensor) -> bool:
    """Whether they are the same up to rounding; prints how far they are apart."""
    scale, off = float(ours.abs().max()), float((ours - theirs).abs().max())
    print(f"{name}: {what} {list(ours.shape)}, largest {scale:.3f}, largest difference {off:.2e}")
    return off <= TOLERANCE * scale
