"""From a recipe and caches to a trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from paceline.drafters.hidden import checkpoint
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.drafters.hidden.target_weights import TargetWeights
from paceline.drafters.hidden.vocabulary import DraftVocabulary
from paceline.engine import models
from paceline.engine.numerics import fingerprint
from paceline.engine.quantised import scheme_of
from paceline.speculation.errors import InvalidRequest
from paceline.training import fresh
from paceline.training.recipe import Recipe
from paceline.training.samples import SampleSet
from paceline.training.targets import TargetDistributions
from paceline.training.trainer import DRAFTER, Trainer
from paceline.training.workers import Workers

_WEIGHTS = ("", "int8", "int4")  # how a target keeps its own


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a run runs."""

    out: Path
    caches: Sequence[Path]
    device: torch.device
    workers: Workers
    say: Callable[[str], None]


def begin(recipe: Recipe, at: Surroundings) -> Trainer:
    """A run at its start. Raises InvalidRequest if the folder holds another, or recipe and caches don't fit."""
    if (at.out / DRAFTER).exists():
        raise InvalidRequest("out", expected="an empty folder", got=str(at.out), hint="--resume goes on with a run")
    target = models.resolve(recipe.model, at.say)
    samples = SampleSet(at.caches)
    for stale in at.out.glob("targets*"):  # of a run that was removed by hand
        stale.unlink()
    drafter = _new(recipe, samples, target, at) if recipe.begins_with is None else _trained(recipe.begins_with, target)
    _check(samples, drafter, target)
    if at.workers.leads:
        recipe.save(at.out)
    return _trainer(at, recipe, drafter, samples, target)


def _new(recipe: Recipe, samples: SampleSet, target: models.LocalModel, at: Surroundings) -> HiddenDrafter:
    """A drafter that knows nothing of these samples but their tokens' frequencies."""
    shape = fresh.Shape(recipe.drafter, recipe.block_size, recipe.layers, recipe.draft_vocab, recipe.markov_rank)
    config = fresh.config_for(target, shape, samples.manifest.target_layer_ids, recipe.mask_token_id)
    at.say(f"counting the tokens of {len(samples.trained)} samples")
    counts = _counts(samples, config.vocab_size)
    vocabulary = DraftVocabulary.by_frequency(counts, config.draft_vocab_size)
    held = _counts(samples, config.vocab_size, held_out=True)
    samples.tell_lost(at.say)
    covered = float(held[vocabulary.target_ids].sum()) / max(float(held.sum()), 1.0)
    at.say(
        f"{int(counts.sum()):,} target tokens; {vocabulary.size:,} draft tokens cover {covered:.2%} of what is held out"
    )
    layers = int(str(TargetWeights(target.folder).config()["num_hidden_layers"]))
    copied = recipe.copied_layers(target.layers or layers)
    return fresh.fresh(config, vocabulary, target, copied=copied, seed=recipe.seed)


def _trained(folder: Path, target: models.LocalModel) -> HiddenDrafter:
    """A drafter of before, to be trained on."""
    drafter = checkpoint.load(folder, target, dtype=torch.float32).requires_grad_(True)
    for name in ("embed_tokens", "lm_head"):  # frozen: bfloat16 is what they are multiplied in
        setattr(drafter, name, getattr(drafter, name).to(torch.bfloat16))
    return drafter


def _check(samples: SampleSet, drafter: HiddenDrafter, target: models.LocalModel) -> None:
    """Raises InvalidRequest unless the samples have the hidden states the drafter reads, of its own target."""
    config, manifest = drafter.config, samples.manifest
    wanted = (config.target_layer_ids, config.hidden_size)
    if (manifest.target_layer_ids, manifest.hidden_size) != wanted:
        expected = f"layers {list(wanted[0])}, {wanted[1]} wide, as the drafter reads"
        raise InvalidRequest("cache", expected=expected, got=(list(manifest.target_layer_ids), manifest.hidden_size))
    known = {fingerprint(target.folder, target.layers, scheme_of(how)) for how in _WEIGHTS}
    for cache in samples.caches:
        said = cache.manifest.provenance.get("paceline_answers")  # DeepSpec's do not say
        if said and said["fingerprint"] not in known:
            got = f"{said.get('model')} ({said['fingerprint'][:12]})"
            raise InvalidRequest("cache", expected=f"states of {target.model_id}", got=got)


def resumed(at: Surroundings) -> Trainer:
    """A killed or stopped run, where its last state stands."""
    recipe = Recipe.load(at.out)
    target = models.resolve(recipe.model, at.say)
    trainer = _trainer(at, recipe, _trained(at.out / DRAFTER, target), SampleSet(at.caches), target)
    trainer.resume()  # refuses caches that are not those of the run, or more
    at.say(f"going on after step {trainer.step}")
    return trainer


def _trainer(
    at: Surroundings, recipe: Recipe, drafter: HiddenDrafter, samples: SampleSet, target: models.LocalModel
) -> Trainer:
    drafter.to(at.device)
    head = TargetWeights(target.folder).head().to(torch.bfloat16).to(at.device)
    name = f"targets-{at.workers.rank}.bin" if at.workers.count > 1 else "targets.bin"
    distributions = TargetDistributions(head, drafter.vocabulary, samples.lengths, at.out / name)
    return Trainer(at.out, recipe, drafter, samples, distributions, workers=at.workers)


def _counts(samples: SampleSet, vocab_size: int, *, held_out: bool = False) -> torch.Tensor:
    """How often each token came in answers, [V]."""
    total = np.zeros(vocab_size, np.int64)
    for index in samples.held_out if held_out else samples.trained:
        sample = samples[index]
        if sample is not None:
            total += np.bincount(sample.input_ids[sample.loss_mask.astype(bool)], minlength=vocab_size)
    return torch.from_numpy(total)
