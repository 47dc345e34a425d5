"""Whether vLLM's ``speculators`` computes with our drafters what we compute: the same logits for the same inputs.

Run it with a Python that has ``speculators`` beside Paceline: ``make interchange`` makes one, in a folder of its own.
Small random drafters for a random target by default; ``--drafter`` and ``--model`` take a trained one.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch
from paceline.cache.target import Sample
from paceline.drafters.hidden import exchange
from paceline.drafters.hidden.config import HiddenConfig
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.drafters.hidden.target_weights import TargetWeights
from paceline.engine import models
from paceline.training.blocks import Blocks, forward
from paceline.training.samples import anchors_of
from torch import Tensor

from bench import interchange_eagle
from bench.interchange_model import agree, speculators_model
from tests.unit.hidden_kit import CONFIG, VOCAB, dflash, small_drafter, write_target

LENGTH = 60


def main() -> int:
    """Returns 0 if all agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drafter", type=Path, help="a trained drafter's folder")
    parser.add_argument("--model", default=models.DEMO, help="its target")
    options = parser.parse_args()
    whole = dataclasses.replace(CONFIG, draft_vocab_size=VOCAB)
    with tempfile.TemporaryDirectory() as scratch:
        drafters: dict[str, HiddenDrafter | EagleDrafter]
        if options.drafter:
            target = models.resolve(options.model)
            drafters = {"trained": exchange.loaded(options.drafter, target)}
        else:
            target = models.LocalModel(write_target(Path(scratch) / "target"), "tiny")
            shapes = {"dspark": CONFIG, "dspark, whole vocabulary": whole, "dflash": dflash()}
            drafters = {name: _of_target(config, target) for name, config in shapes.items()}
            drafters |= interchange_eagle.of_target(target)
        found = [_compare(name, each, target, Path(scratch) / "out") for name, each in drafters.items()]
    return 0 if all(found) else 1


def _of_target(config: HiddenConfig, target: models.LocalModel) -> HiddenDrafter:
    weights = TargetWeights(target.folder)
    like = small_drafter(config)
    drafter = HiddenDrafter(config, like.vocabulary, weights.embedding().float(), weights.head().float())
    drafter.load_state_dict(like.state_dict())
    return drafter.eval()


@torch.no_grad()
def _compare(name: str, drafter: HiddenDrafter | EagleDrafter, target: models.LocalModel, folder: Path) -> bool:
    if isinstance(drafter, EagleDrafter):
        return interchange_eagle.compare(name, drafter, target, folder)
    exchange.export(drafter, folder, form=exchange.SPECULATORS, verifier=str(target.folder), dtype=torch.float32)
    sample, blocks = _input(drafter.config)
    ours = _ours(drafter, blocks)
    theirs = _theirs(drafter.config, folder, sample, len(blocks.places))
    agreed = [agree(name, what, mine, theirs[what]) for what, mine in ours.items()]
    return all(agreed)


def _input(config: HiddenConfig) -> tuple[Sample, Blocks]:
    """A random sample, of which ``speculators`` takes every anchor it can: those a block away from the end."""
    draw = np.random.default_rng(0)
    mask = np.zeros(LENGTH, np.uint8)
    mask[20:] = 1
    wide = torch.randn(
        LENGTH, config.hidden_size * len(config.target_layer_ids), generator=torch.Generator().manual_seed(0)
    )
    tokens = draw.integers(0, config.vocab_size, LENGTH).astype(np.int32)
    nothing = np.zeros((LENGTH, 1), np.uint16)
    sample = Sample(0, tokens, np.ones(LENGTH, np.uint8), mask, nothing, nothing)
    places = torch.from_numpy(anchors_of(sample, None, None))
    places = places[(places >= 20) & (places < LENGTH - config.block_size)]
    ids = torch.from_numpy(tokens.astype(np.int64))
    after = places[:, None] + torch.arange(config.draft_tokens)
    empty = torch.zeros(0)
    blocks = Blocks(
        states=wide, anchors=ids[places], places=places, previous=ids[after], labels=ids[after + 1],
        counted=torch.ones_like(after, dtype=torch.bool), likely=empty, chances=empty,
    )  # fmt: skip
    return sample, blocks


def _ours(drafter: HiddenDrafter, blocks: Blocks) -> dict[str, Tensor]:
    hidden = forward(drafter, [dataclasses.replace(blocks, states=blocks.states[: int(blocks.places[-1])])]).flatten(
        0, 1
    )
    previous = blocks.previous.flatten()
    found = {"logits": drafter.biased(drafter.head(hidden), previous)}
    confidence = drafter.confidence(hidden, previous)
    return found if confidence is None else found | {"confidence": confidence}


def _theirs(config: HiddenConfig, folder: Path, sample: Sample, anchors: int) -> dict[str, Tensor]:
    model = speculators_model(folder)
    states = _input(config)[1].states
    ids = torch.from_numpy(sample.input_ids.astype(np.int64))
    hidden, logits, _, _, indices = model._backbone_forward(  # noqa: SLF001  # what its forward pass runs first
        states[None],
        ids[None],
        torch.from_numpy(sample.loss_mask.astype(np.int64))[None],
        torch.zeros(1, LENGTH, config.hidden_size),
        torch.zeros(1, LENGTH, dtype=torch.long),
        max_anchors=anchors,
    )
    hidden, logits = (each.view(anchors, config.block_size, -1)[:, config.first_row :] for each in (hidden, logits))
    if config.drafter != "dspark":
        return {"logits": logits.flatten(0, 1)}
    before = ids[indices].view(anchors, config.block_size)
    rows = model.markov_head.prev_embeddings(before)
    bias = model.markov_head.block_bias(prev_token_ids=before, hidden_states=hidden, prev_emb=rows)
    confidence = model.confidence_head(torch.cat((hidden, rows), dim=-1))
    return {"logits": (logits + bias).flatten(0, 1), "confidence": confidence.flatten()}


if __name__ == "__main__":
    raise SystemExit(main())
