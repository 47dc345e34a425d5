"""EAGLE-3 drafters for ``bench.interchange``: ``speculators``' training pass against our drafting, step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from paceline.drafters.hidden import exchange
from paceline.drafters.hidden.backend import BlockAsk, Piece
from paceline.drafters.hidden.config import RopeScaling
from paceline.drafters.hidden.eagle.backend import EagleBackend
from paceline.drafters.hidden.eagle.config import EagleConfig
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.target_weights import TargetWeights
from paceline.engine import models
from torch import Tensor

from bench.interchange_model import agree, speculators_model
from tests.unit.eagle_kit import CONFIG, small_eagle
from tests.unit.hidden_kit import VOCAB

LENGTH = 60


def shapes() -> dict[str, EagleConfig]:
    """Every variant there is."""
    normed = dataclasses.replace(CONFIG, norm_before_residual=True, norm_before_fc=True)
    return {
        "eagle3": CONFIG,
        "eagle3, whole vocabulary": dataclasses.replace(CONFIG, draft_vocab_size=VOCAB),
        "eagle3, norms before residual and projection": normed,
        "eagle3, Llama 3's rotary embedding": dataclasses.replace(CONFIG, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32)),
        "eagle3, of Qwen3's layer, all norms": dataclasses.replace(
            CONFIG, model_type="qwen3", norm_before_residual=True, fc_norm=True, norm_output=True
        ),
    }


def of_target(target: models.LocalModel) -> Iterator[tuple[str, EagleDrafter]]:
    """Random drafters for a tiny target."""
    embedding = TargetWeights(target.folder).embedding().float()
    for name, config in shapes().items():
        yield name, small_eagle(config, embedding=embedding)


@torch.no_grad()
def compare(name: str, drafter: EagleDrafter, target: models.LocalModel, folder: Path) -> bool:
    """Whether both score each of K drafts after every prefix of a random text alike, the drafts given."""
    exchange.export(drafter, folder, form=exchange.SPECULATORS, verifier=str(target.folder), dtype=torch.float32)
    config = drafter.config
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(LENGTH, config.hidden_size * len(config.target_layer_ids), generator=draw)
    tokens = torch.randint(config.vocab_size, (LENGTH + 1,), generator=draw)
    count = LENGTH - config.draft_tokens  # prefixes with K tokens after them
    theirs = _theirs(config, folder, states, tokens)[:, :count]
    return agree(name, "logits by step", _ours(drafter, states, tokens, count), theirs)


def _ours(drafter: EagleDrafter, states: Tensor, tokens: Tensor, count: int) -> Tensor:
    """[K, count, Vd], as they are served: a session for every prefix, all of them drafted for together."""
    backend = EagleBackend(drafter, 2 * LENGTH * LENGTH)
    features, known = drafter.project(states), tokens.tolist()
    places = range(count)
    assert all(backend.reserve(str(place), LENGTH) for place in places)
    backend.append([Piece(str(place), 0, features[: place + 1], known) for place in places])
    drafting = backend.begin([BlockAsk(str(place), known[place + 1], place + 1, known) for place in places])
    return torch.stack(
        [drafting.logits(step, tokens[1 + step : 1 + step + count], places) for step in range(drafting.steps)]
    )


def _theirs(config: EagleConfig, folder: Path, states: Tensor, tokens: Tensor) -> Tensor:
    """[K, LENGTH, Vd]: their steps of training-time test, which take the text for what was drafted."""
    model = speculators_model(folder)
    seen: list[Tensor] = []
    model.lm_head.register_forward_hook(lambda module, given, out: seen.append(out[0]))
    model(states[None], tokens[None, 1:], torch.zeros(1, LENGTH, dtype=torch.long), ttt_steps=config.draft_tokens)
    return torch.stack(seen)
