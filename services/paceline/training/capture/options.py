"""What a capture is asked to do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline.cache.target.writer import SHARD_BYTES
from paceline.speculation.errors import InvalidRequest
from paceline.training.capture.recipe import Recipe

_RECIPE = Recipe()
_KV_TOKENS = 98304  # 128 answers of the default length with their prompts
_READ_SAMPLES = 4  # samples the target reads at once, at most, when it does nothing else


@dataclass(frozen=True, slots=True)
class Options:
    """A command line that was understood."""

    model: str
    recipe: Recipe
    prompts: tuple[Path, ...]
    answers: Path
    cache: Path | None  # None stops after the answers
    roots: tuple[Path, ...]
    layers: tuple[int, ...]  # () takes five, spread as DeepSpec spreads them
    min_loss_tokens: int
    shard_bytes: int
    part: int
    parts: int
    sessions: int
    step_tokens: int
    kv_tokens: int
    threads: int | None
    dtype: str
    weights: str
    device: str
    asks: bool  # whether prompts are to be answered

    def answers_of(self, part: int) -> Path:
        """The answers file of one of the parts."""
        if self.parts == 1:
            return self.answers
        return self.answers.with_name(f"{self.answers.stem}.{part}-of-{self.parts}{self.answers.suffix}")


def parse(arguments: Sequence[str] | None) -> Options:
    """Raises InvalidRequest naming the option, SystemExit as argparse does."""
    given = _parser().parse_args(arguments)
    if not given.from_answers and not given.prompts:
        raise InvalidRequest("prompts", expected="a file at least", got=None, hint="or --from-answers")
    if given.answers_only and given.from_answers:
        raise InvalidRequest("answers-only", expected="one phase or the other", got="both", hint="leave both out")
    if not given.out and not (given.answers_only and given.answers):
        hint = "or --answers-only and --answers"
        raise InvalidRequest("out", expected="the cache's folder", got=None, hint=hint)
    part, parts = _part(given.part)
    return Options(
        model=given.model,
        recipe=Recipe(
            seed=given.seed, temperature=given.temperature, top_p=given.top_p, top_k=given.top_k, min_p=given.min_p,
            greedy_share=given.greedy_share, samples=given.samples, max_tokens=given.max_tokens,
            max_length=given.max_length,
        ),
        prompts=tuple(given.prompts),
        answers=given.answers or given.out.with_name(f"{given.out.name}.answers.jsonl"),
        cache=None if given.answers_only else given.out,
        roots=tuple(given.root),
        layers=_layers(given.layers),
        min_loss_tokens=given.min_loss_tokens,
        shard_bytes=given.shard_bytes,
        part=part,
        parts=parts,
        sessions=given.sessions,
        step_tokens=given.step_tokens,
        kv_tokens=given.kv_tokens or (_READ_SAMPLES * given.max_length if given.from_answers else _KV_TOKENS),
        threads=given.threads,
        dtype=given.dtype,
        weights=given.weights,
        device=given.device,
        asks=not given.from_answers,
    )  # fmt: skip


def _part(text: str) -> tuple[int, int]:
    first, mark, count = text.partition("/")
    if mark and first.isdecimal() and count.isdecimal() and int(first) < int(count):
        return int(first), int(count)
    raise InvalidRequest("part", expected="I/N with I from 0 to N - 1", got=text)


def _layers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(layer) for layer in text.split(",")) if text else ()
    except ValueError as error:
        raise InvalidRequest("layers", expected="layer numbers with commas between them", got=text) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paceline cache capture",
        description="Let the target answer prompts, and keep its hidden states for drafters to be trained on. Killed, "
        "it goes on where it was when it is started with the same options again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--prompts", type=Path, nargs="+", default=[], metavar="FILE", help='JSON lines of {"turns": ["…"]}')
    add("--model", default="demo", help="the target: demo, a folder, a GGUF file, a hub id")
    add("--out", type=Path, metavar="FOLDER", help="the cache; made, or gone on with")
    add("--root", type=Path, action="append", default=[], metavar="FOLDER", help="where shards go, in turn")
    add("--answers", type=Path, metavar="FILE", help="what the target said (default: beside the cache)")
    add("--answers-only", action="store_true", help="stop when the prompts are answered")
    add("--from-answers", action="store_true", help="ask nothing; take the answers there are")
    add("--part", default="0/1", metavar="I/N", help="answer every Nth prompt, from the Ith on, beside other processes")
    _add_recipe(parser)
    add(
        "--layers",
        metavar="L,…",
        help="layers kept; =-1,… begins with the embedding (default: five, spread as DeepSpec does)",
    )
    add("--min-loss-tokens", type=int, default=1, metavar="N", help="samples with fewer of its own tokens are left out")
    add("--shard-bytes", type=int, default=SHARD_BYTES, metavar="N", help="size of a shard")
    add("--sessions", type=int, default=128, metavar="N", help="answers under way at once")
    add("--step-tokens", type=int, default=256, metavar="N", help="rows of a step")
    add("--kv-tokens", type=int, metavar="N", help="KV positions held (default: 98304; a few samples for states alone)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    add("--dtype", default="bfloat16", help="type of weights and KV state")
    add("--weights", default="", help="int8 or int4: a quantised target is another target")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seed", type=int, default=_RECIPE.seed, metavar="N", help="answers are a function of it and their prompt")
    add("--temperature", type=float, default=_RECIPE.temperature, metavar="T", help="0 is greedy")
    add("--top-p", type=float, default=_RECIPE.top_p, metavar="P", help="likeliest tokens of this mass alone")
    add("--top-k", type=int, default=_RECIPE.top_k, metavar="N", help="so many of the likeliest tokens; 0 is all")
    add("--min-p", type=float, default=_RECIPE.min_p, metavar="P", help="least probability, of the likeliest's")
    add("--greedy-share", type=float, default=_RECIPE.greedy_share, metavar="S", help="prompts answered greedily")
    add("--samples", type=int, default=_RECIPE.samples, metavar="N", help="answers to a prompt that is not")
    add("--max-tokens", type=int, default=_RECIPE.max_tokens, metavar="N", help="tokens of an answer")
    add("--max-length", type=int, default=_RECIPE.max_length, metavar="N", help="tokens of prompt and answer")
