"""A tiny target's cache, and runs over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from paceline.cache.target import CacheSpec, Sample, TargetCacheWriter, seal
from paceline.training import setup
from paceline.training.recipe import Recipe
from paceline.training.trainer import Trainer
from paceline.training.workers import Workers

from tests.unit.hidden_kit import HIDDEN, VOCAB, write_target

LAYER_IDS = (0, 2)


def write_cache(
    folder: Path, *, samples: int = 90, seed: int = 0, layer_ids: tuple[int, ...] = LAYER_IDS, fingerprint: str = ""
) -> Path:
    """Texts that count upwards modulo 20 from a random start, with hidden states that tell where they stand."""
    draw = np.random.default_rng(seed)
    table = np.random.default_rng(7).normal(size=(VOCAB, len(LAYER_IDS) * HIDDEN + HIDDEN)).astype(np.float32)
    more = {"paceline_answers": {"model": "tiny", "fingerprint": fingerprint}} if fingerprint else {}
    with TargetCacheWriter(folder, CacheSpec(layer_ids, HIDDEN, "tiny", more=more)) as writer:
        for key in range(samples):
            length = int(draw.integers(14, 30))
            tokens = (int(draw.integers(0, 20)) + np.arange(length)) % 20
            mask = np.ones(length, np.uint8)
            mask[: int(draw.integers(2, 6))] = 0
            states = bits(table[tokens])
            writer.write(
                Sample(
                    key=key,
                    input_ids=tokens.astype(np.int32),
                    attention_mask=np.ones(length, np.uint8),
                    loss_mask=mask,
                    hidden=states[:, : len(LAYER_IDS) * HIDDEN].copy(),
                    last_hidden=states[:, len(LAYER_IDS) * HIDDEN :].copy(),
                )
            )
    seal(folder)
    return folder


def bits(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """As bfloat16's bits."""
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def recipe_for(tmp_path: Path, **changes: object) -> Recipe:
    """A short run over the tiny target, which is written."""
    if not (tmp_path / "target").exists():
        write_target(tmp_path / "target")
    fields: dict[str, object] = {
        "model": str(tmp_path / "target"),
        "block_size": 3,
        "draft_vocab": 24,
        "markov_rank": 8,
        "mask_token_id": 63,
        "steps": 12,
        "warm_up": 3,
        "anchors": 8,
        "learning_rate": 3e-3,
        "distillation": 0.0,
        "cross_entropy": 1.0,
    }
    return Recipe(**{**fields, **changes})  # type: ignore[arg-type]  # a test's own words


def surroundings(
    tmp_path: Path, name: str = "run", *, caches: int = 1, workers: Workers | None = None
) -> setup.Surroundings:
    """Over the first ``caches`` caches, which are written if missing."""
    folders = [tmp_path / f"cache{index}" for index in range(caches)]
    for index, folder in enumerate(folders):
        if not folder.exists():
            write_cache(folder, seed=index)
    said: list[str] = []
    return setup.Surroundings(tmp_path / name, folders, torch.device("cpu"), workers or Workers(), said.append)


def losses(trainer: Trainer) -> list[float]:
    """Run to the end."""
    found: list[float] = []
    trainer.run(lambda report: found.append(report.loss))
    return found
