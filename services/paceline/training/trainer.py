"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paceline.drafters.hidden import checkpoint
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.speculation.errors import InvalidRequest
from paceline.training import state as states
from paceline.training.blocks import Blocks, blocks_of
from paceline.training.losses import LossWeights
from paceline.training.objective import outcome
from paceline.training.recipe import Recipe
from paceline.training.replay import Replayed, replay
from paceline.training.samples import SampleSet, anchors_of
from paceline.training.targets import TargetDistributions
from paceline.training.workers import Workers

DRAFTER = "drafter"
SAVE_S = 120.0
_HELD_OUT = 48  # samples replayed at most


def weights_at(recipe: Recipe, progress: float) -> LossWeights:
    """What counts how much when so much of the run (0 .. 1) is done: distillation fades linearly."""
    return LossWeights(
        cross_entropy=recipe.cross_entropy,
        distillation=recipe.distillation * (1 - min(progress, 1.0)),
        total_variation=recipe.total_variation,
        confidence=recipe.confidence,
        confidence_teaches=recipe.confidence_teaches,
        gamma=recipe.gamma,
    )


@dataclass(frozen=True, slots=True)
class Report:
    """A step, over all processes."""

    step: int
    progress: float  # 0 .. 1
    seconds_left: float
    loss: float
    rate: float
    rows: int  # block tokens
    hits: list[float]  # [K] share of drafts that are the token that came
    overlaps: list[float]  # [K] mean 1 - TV


class Trainer:
    """A run: from where its folder stands to its end.

    Args:
        out: the run's folder: recipe, state, log, and the drafter as it is now.
        drafter: float32; trained in place.
    """

    def __init__(
        self,
        out: Path,
        recipe: Recipe,
        drafter: HiddenDrafter,
        samples: SampleSet,
        targets: TargetDistributions,
        *,
        workers: Workers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.out, self.recipe, self.drafter, self.samples = out, recipe, drafter, samples
        self._targets, self._clock = targets, clock
        self._workers = workers or Workers()
        self._trained = [each for each in drafter.parameters() if each.requires_grad]
        self._optimiser = torch.optim.AdamW(
            self._trained, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.step = 0
        self._elapsed = 0.0  # before this process
        self._began = clock()
        self._stop = False

    def resume(self) -> None:
        """Go on from the folder's state. Raises InvalidRequest if there is none."""
        found = states.load(self.out)
        here = [len(cache) for cache in self.samples.caches]
        if here[: len(found.caches)] != found.caches:
            hint = "give the run's caches in their order; others may follow them"
            raise InvalidRequest("cache", expected=f"{found.caches} samples", got=here, hint=hint)
        self.drafter.load_state_dict(found.weights)
        self._optimiser.load_state_dict(found.optimiser)
        self.step, self._elapsed = found.step, found.elapsed_s

    def stop(self) -> None:
        """End after the step under way; its state is saved."""
        self._stop = True

    def run(self, report: Callable[[Report], None], *, save_every_s: float = SAVE_S) -> None:
        """Train to the end, or to ``stop``."""
        log = states.Log(self.out, steps=self.step) if self._workers.leads else None
        self._began = self._clock()
        saved = self._began
        self.drafter.train()
        try:
            while (progress := self._progress()) < 1 and not self._agreed_stop():
                each = self._one(progress)
                report(each)
                if log is not None:
                    log.write({name: getattr(each, name) for name in ("step", "loss", "rate", "rows", "hits")})
                    if self._clock() - saved > save_every_s:
                        self.save()
                        saved = self._clock()
        finally:
            if log is not None:
                log.close()
        if self._workers.leads:
            self.save()

    def save(self) -> None:
        """Write state and drafter."""
        states.save(
            self.out,
            states.State(
                step=self.step,
                elapsed_s=self._spent(),
                weights=dict(self.drafter.state_dict()),
                optimiser=self._optimiser.state_dict(),
                caches=[len(cache) for cache in self.samples.caches],
            ),
        )
        checkpoint.save(self.out / DRAFTER, self.drafter)

    def measure(self, limit: int = _HELD_OUT) -> Replayed:
        """Replay held-out samples."""
        self.drafter.eval()
        blocks = (self._blocks(index, None, None) for index in self.samples.held_out[:limit])
        with self._autocast():
            found = replay(self.drafter, (each for each in blocks if each is not None))
        self.drafter.train()
        return found

    def _one(self, progress: float) -> Report:
        """One step."""
        rate = self.recipe.rate(self.step, progress)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=False)
        batch = self._batch()
        facts = torch.zeros(2 + 3 * self.drafter.config.draft_tokens)
        if batch:
            with self._autocast():
                result = outcome(self.drafter, batch, weights_at(self.recipe, progress))
            torch.autograd.backward(result.loss)
            facts = result.facts()
        self._workers.add_up([facts])
        gradients = self._gradients()
        self._workers.add_up(gradients)
        weight = float(facts[1])
        if weight:
            torch._foreach_div_(gradients, weight)
            nn.utils.clip_grad_norm_(self._trained, self.recipe.clip)
            self._optimiser.step()
        self.step += 1
        return self._report(facts, rate)

    def _gradients(self) -> list[Tensor]:
        for each in self._trained:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        return [each.grad for each in self._trained if each.grad is not None]

    def _batch(self) -> list[Blocks]:
        """This process's part of the step's samples."""
        chosen = self.samples.order(self.recipe.seed, self.step, self.recipe.samples)
        mine = list(enumerate(chosen))[self._workers.rank :: self._workers.count]
        found = []
        for place, index in mine:
            draw = np.random.default_rng((self.recipe.seed, self.step, place))
            found.append(self._blocks(index, self.recipe.anchors, draw))
        return [each for each in found if each is not None]

    def _blocks(self, index: int, limit: int | None, draw: np.random.Generator | None) -> Blocks | None:
        sample = self.samples[index]
        if sample is None:
            return None
        places = anchors_of(sample, limit, draw)
        if not len(places):
            return None
        tokens = self.drafter.config.draft_tokens
        return blocks_of(sample, index, places, draft_tokens=tokens, targets=self._targets)

    def _report(self, facts: Tensor, rate: float) -> Report:
        steps = self.drafter.config.draft_tokens
        rows, hits, overlaps = facts[2 : 2 + steps], facts[2 + steps : 2 + 2 * steps], facts[2 + 2 * steps :]
        progress = self._progress()
        spent = self._spent()
        return Report(
            step=self.step,
            progress=progress,
            seconds_left=spent * (1 - progress) / progress if progress > 0 else float("inf"),
            loss=float(facts[0]) / max(float(facts[1]), 1e-9),
            rate=rate,
            rows=int(rows.sum()),
            hits=(hits / rows.clamp_min(1)).tolist(),
            overlaps=(overlaps / rows.clamp_min(1)).tolist(),
        )

    def _progress(self) -> float:
        if self.recipe.steps is not None:
            return self.step / self.recipe.steps
        assert self.recipe.minutes is not None, self.recipe
        return self._workers.agree(self._spent() / (60 * self.recipe.minutes))

    def _agreed_stop(self) -> bool:
        return bool(self._workers.agree(float(self._stop)))

    def _spent(self) -> float:
        return self._elapsed + self._clock() - self._began

    def _autocast(self) -> Any:
        return torch.autocast(self.drafter.fc.weight.device.type, dtype=torch.bfloat16)
