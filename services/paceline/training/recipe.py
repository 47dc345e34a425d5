"""Everything a training run depends on, beside its caches. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.speculation.errors import InvalidRequest

RECIPE = "recipe.json"
TARGET = "target"
RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A run. Exactly one of ``steps`` and ``minutes`` bounds it.

    With ``steps`` a run is a function of recipe and caches, killed and resumed or not. With ``minutes`` the learning
    rate follows the clock.
    """

    model: str = "demo"
    drafter: str = "dspark"
    block_size: int = 5
    layers: int = 2
    draft_vocab: int = 12288
    markov_rank: int = 64
    mask_token_id: int = 0
    init: str = TARGET  # or random, or a trained drafter's folder, whose shape and vocabulary stand
    init_layers: tuple[int, ...] = ()  # the target's layers copied; () takes its last ones
    steps: int | None = None
    minutes: float | None = None
    samples: int = 2  # of a step, all processes together
    anchors: int = 64  # blocks per sample at most
    learning_rate: float = 1e-3
    floor: float = 0.02  # of the learning rate, where the run ends
    warm_up: int = 50  # steps
    clip: float = 1.0  # norm of the gradient
    seed: int = 0
    cross_entropy: float = 0.1
    distillation: float = 1.0  # at the start; fades linearly to nothing at the end
    total_variation: float = 0.9
    confidence: float = 1.0
    confidence_teaches: bool = False  # whether the confidence head's loss reaches the layers below it
    gamma: float = 4.0

    def __post_init__(self) -> None:
        """Raises InvalidRequest naming a field that cannot be."""
        if (self.steps is None) == (self.minutes is None):
            raise InvalidRequest("steps", expected="either steps or minutes", got=(self.steps, self.minutes))
        if self.begins_with is not None and not self.begins_with.is_dir():
            raise InvalidRequest("init", expected="target, random or a drafter's folder", got=self.init)
        for name in ("steps", "minutes", "samples", "anchors", "learning_rate", "clip", "gamma"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidRequest(name, expected="more than 0", got=value)

    @property
    def begins_with(self) -> Path | None:
        """The drafter that is trained on; None begins one."""
        return None if self.init in (TARGET, RANDOM) else Path(self.init)

    def rate(self, step: int, progress: float) -> float:
        """Learning rate: linear warm-up, then half a cosine down to ``floor``; ``progress`` is 0 .. 1 of the run."""
        warm = min(1.0, (step + 1) / max(self.warm_up, 1))
        wave = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        return self.learning_rate * warm * (self.floor + (1 - self.floor) * wave)

    def copied_layers(self, target_layers: int) -> tuple[int, ...] | None:
        """The target's layers that the drafter's begin as; None begins at random."""
        if self.init == RANDOM:
            return None
        if self.init_layers:
            return self.init_layers
        return tuple(range(target_layers - self.layers, target_layers))

    def save(self, folder: Path) -> None:
        """Write ``recipe.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Recipe:
        """Read ``recipe.json``. Raises InvalidRequest if there is none, or one of another version."""
        try:
            fields: dict[str, Any] = json.loads((folder / RECIPE).read_text())
        except FileNotFoundError as error:
            raise InvalidRequest("resume", expected=f"a folder with {RECIPE}", got=str(folder)) from error
        unknown = sorted(fields.keys() - {each.name for each in dataclasses.fields(cls)})
        if unknown:
            raise InvalidRequest(f"{RECIPE}.{unknown[0]}", expected="a field of this version", got=fields[unknown[0]])
        fields["init_layers"] = tuple(fields.get("init_layers", ()))
        return cls(**fields)
