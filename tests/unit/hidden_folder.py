"""Folders of drafters with random weights, for the demo model cut short and for the fake one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from paceline.drafters.hidden import checkpoint
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.drafters.hidden.target_weights import TargetWeights
from paceline.drafters.hidden.vocabulary import DraftVocabulary
from paceline.engine import models, numerics

from tests.unit import eagle_kit, hidden_kit

DEMO = "demo@layers=2"


def demo_drafter(folder: Path, *, layers: tuple[int, ...] = (-1, 1), name: str = DEMO) -> Path:
    """A drafter of the demo model's first two layers, for every sixth token."""
    weights, vocabulary, shape = _of(name, layers)
    config = dataclasses.replace(hidden_kit.CONFIG, **shape)
    network = HiddenDrafter(config, vocabulary, weights.embedding().float(), weights.head().float())
    checkpoint.save(folder, network)
    return folder


def demo_eagle(folder: Path, *, layers: tuple[int, ...] = (-1, 0, 1), name: str = DEMO) -> Path:
    """The same, of EAGLE-3."""
    weights, vocabulary, shape = _of(name, layers)
    config = dataclasses.replace(eagle_kit.CONFIG, fc_norm=True, **shape)
    checkpoint.save(folder, EagleDrafter(config, vocabulary, weights.embedding().float()))
    return folder


def _of(name: str, layers: tuple[int, ...]) -> tuple[TargetWeights, DraftVocabulary, dict[str, Any]]:
    """A target's weights, a vocabulary of every sixth token, and what a drafter's configuration says of both.

    The next weights that are drawn are always the same.
    """
    target = models.resolve(name)
    weights = TargetWeights(target.folder)
    vocab, hidden = weights.embedding().shape
    shape = {
        "hidden_size": hidden,
        "vocab_size": vocab,
        "draft_vocab_size": vocab // 6,
        "target_layer_ids": layers,
        "target_model": name,
        "target_fingerprint": numerics.fingerprint(target.folder, target.layers),
    }
    torch.manual_seed(5)
    return weights, DraftVocabulary(torch.arange(0, 6 * (vocab // 6), 6), vocab), shape
