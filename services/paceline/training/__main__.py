"""``python -m paceline.training``: train a drafter; ``paceline train`` is this."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from paceline.engine import models
from paceline.speculation.errors import InvalidRequest, PacelineError
from paceline.training import setup
from paceline.training.progress import Display
from paceline.training.quick import Interrupted, Quick, prepare
from paceline.training.recipe import Recipe
from paceline.training.replay import Replayed
from paceline.training.trainer import DRAFTER, SAVE_S, Trainer
from paceline.training.workers import Workers

INTERRUPTED = 130
_MINUTES = 20.0  # unless said otherwise
_FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}
_OPTIONS = {
    "model": "the target: demo, a folder, a GGUF file or a Hugging Face id",
    "drafter": "dspark or dflash",
    "block_size": "rows of a block: the anchor and masks",
    "layers": "decoder layers of the drafter",
    "draft_vocab": "tokens it can draft, the target's most frequent",
    "markov_rank": "rank of the Markov head",
    "mask_token_id": "the token that stands for what is not known yet",
    "init": "target begins with copies of the target's own layers, random does not; a drafter's folder goes on from it",
    "steps": "how long to train; a run of so many steps is the same killed and resumed or not",
    "minutes": "how long to train, by the clock",
    "samples": "samples of a step",
    "anchors": "blocks per sample at most",
    "learning_rate": "at its highest",
    "warm_up": "steps until then",
    "seed": "fixes start and order",
    "cross_entropy": "weight of this part of the loss",
    "distillation": "weight of cross-entropy against the target's distribution at the start; it fades to nothing",
    "total_variation": "weight of this part of the loss",
    "confidence": "weight of this part of the loss",
    "gamma": "row k of a block counts exp(-(k - 1) / gamma)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 trained, 1 refused, 130 stopped by Ctrl-C (what was learned is saved)."""
    options = _parser().parse_args(argv)
    try:
        return _train(options)
    except Interrupted as error:
        print(error, file=sys.stderr)  # noqa: T201  # what a command says
        return INTERRUPTED
    except PacelineError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # what a command says
        return 1


def _train(options: argparse.Namespace) -> int:
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    workers = Workers.join(device)
    display = Display(quiet=not workers.leads)
    try:
        trainer = _trainer(options, device, workers, display)
        stopped = _run(trainer, display, workers, options.save_seconds)
    finally:
        display.close()
        workers.leave()
    return INTERRUPTED if stopped else 0


def _trainer(options: argparse.Namespace, device: torch.device, workers: Workers, display: Display) -> Trainer:
    if options.resume:
        return setup.resumed(_at(options, device, workers, display))
    given = {name: getattr(options, name) for name in _OPTIONS if getattr(options, name) is not None}
    if "steps" not in given and "minutes" not in given:
        given["minutes"] = Quick().minutes if options.quick else _MINUTES
    if options.init_layers is not None:
        given["init_layers"] = tuple(options.init_layers)
    recipe = Recipe(**given)
    return setup.begin(recipe, _at(options, device, workers, display))


def _at(options: argparse.Namespace, device: torch.device, workers: Workers, display: Display) -> setup.Surroundings:
    """Where the run runs; of a quick one, its own cache."""
    caches = options.cache
    if options.quick:
        if caches or workers.count > 1:
            raise InvalidRequest("quick", expected="no --cache, and one process", got=[str(each) for each in caches])
        model = options.model or models.DEMO
        caches = [prepare(options.out, model, options.threads, display.say, how=Quick())]
    if not caches:
        raise InvalidRequest("cache", expected="at least one", got=None, hint="or --quick, which makes its own")
    return setup.Surroundings(options.out, caches, device, workers, display.say)


def _run(trainer: Trainer, display: Display, workers: Workers, save_every_s: float) -> bool:
    """Whether it was stopped."""
    asked: list[int] = []

    def stop(number: int, _frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        display.say("stopping after this step; again to leave at once")
        trainer.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if trainer.step == 0 and workers.leads:
            trainer.save()
        trainer.run(display.step, save_every_s=save_every_s)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if workers.leads:
        display.say(f"{'stopped' if asked else 'done'} after {trainer.step} steps: {trainer.out / DRAFTER}")
        if not asked:
            display.say(_summary(trainer.measure()))
        trainer.samples.tell_lost(display.say)
    return bool(asked)


def _summary(found: Replayed) -> str:
    share = ", ".join(f"{each:.2f}" for each in found.per_position)
    return (
        f"held out: τ {found.tau:.2f} greedy over {sum(found.rounds)} rounds, "
        f"{found.tau_sampled:.2f} expected at temperature 1; acceptance by position {share}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("paceline train", description="Train a drafter on a target cache.")
    parser.add_argument("--cache", type=Path, action="append", default=[], help="a target cache; may be repeated")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the drafter is in its drafter/")
    parser.add_argument("--quick", action="store_true", help="from nothing: prompts, capture and training in one")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out; its recipe stands")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--save-seconds", type=float, default=SAVE_S, help=f"between states of the run ({SAVE_S:g})")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--init-layers", type=int, nargs="+", help="the target's layers copied, one per drafter layer")
    for name, text in _OPTIONS.items():
        default = _FIELDS[name].default
        kind = float if name == "minutes" or isinstance(default, float) else str if isinstance(default, str) else int
        shown = "" if default is None else f" ({default})"
        parser.add_argument("--" + name.replace("_", "-"), type=kind, help=text + shown)
    return parser


if __name__ == "__main__":
    sys.exit(main())
