"""What a killed run goes on from: one file, whole or not there; and the log beside it, cut back to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paceline.speculation.errors import InvalidRequest

STATE = "state.pt"
LOG = "log.jsonl"


@dataclass(frozen=True, slots=True)
class State:
    """A run after ``step`` steps."""

    step: int
    elapsed_s: float  # of training
    weights: dict[str, Tensor]
    optimiser: dict[str, Any]
    caches: list[int]  # samples of each, to notice others


def save(folder: Path, state: State) -> None:
    """Write a state, whole or not at all."""
    staged = folder / f".{STATE}.staged"
    torch.save(
        {
            "step": state.step,
            "elapsed_s": state.elapsed_s,
            "weights": state.weights,
            "optimiser": state.optimiser,
            "caches": state.caches,
        },
        staged,
    )
    staged.replace(folder / STATE)


def load(folder: Path) -> State:
    """Raises InvalidRequest if there is none."""
    path = folder / STATE
    if not path.is_file():
        raise InvalidRequest(
            "resume", expected=f"a folder with {STATE}", got=str(folder), hint="train without --resume"
        )
    return State(**torch.load(path, weights_only=True))


class Log:
    """One JSON object per step."""

    def __init__(self, folder: Path, *, steps: int) -> None:
        """Go on after ``steps`` steps: what a killed run wrote beyond its last state comes again."""
        self._path = folder / LOG
        lines = self._path.read_text().splitlines()[:steps] if steps and self._path.exists() else []
        self._path.write_text("".join(line + "\n" for line in lines))
        self._file = self._path.open("a", buffering=1)

    def write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")

    def close(self) -> None:
        self._file.close()
