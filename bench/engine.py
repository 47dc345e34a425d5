"""What a step costs beside the least it could cost.

The floor of a step is its bare matrix products, as few as can be and with pre-packed weights, and one read of the KV
it attends to, at the rate at which memory is copied. Floor and step (a forward pass up to the logits of all its rows)
are timed in turn, so that a busy machine is busy for both. Beside them: the same step on torch alone, and
transformers' own forward pass with its DynamicCache.

The bars: at most 1.5 floors for one session's 1 and 8 tokens at context 256, 1.8 for many sessions.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from paceline.engine import models
from paceline.engine.interface import Slice, StepPlan
from paceline.engine.loading import EngineSpec, load_engine, load_model
from paceline.engine.machine import processor
from paceline.engine.torch_engine import TorchEngine
from paceline.speculation.params import SamplingParams

from bench import stats
from bench.arguments import parser
from bench.floor import Floor, Product, products_of

GREEDY = SamplingParams(temperature=0)
DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Shape:
    """A step: so many tokens of each of so many sessions, each after ``context``."""

    sessions: int
    tokens: int
    context: int
    bar: float

    def __str__(self) -> str:
        return f"{self.sessions} × {self.tokens} at {self.context}"


SHAPES = (
    Shape(1, 1, 256, 1.5),
    Shape(1, 8, 256, 1.5),
    Shape(8, 8, 256, 1.8),
    Shape(16, 4, 256, 1.8),
    Shape(16, 4, 2048, 1.8),
)


def load(arguments: argparse.Namespace, *, native: bool) -> TorchEngine:
    """An engine, over torch alone if not ``native``."""
    before = os.environ.get("PACELINE_NATIVE")
    os.environ["PACELINE_NATIVE"] = "1" if native else "0"
    try:
        engine = load_engine(EngineSpec(model=arguments.model, threads=arguments.threads, kv_tokens=1024)).engine
    finally:
        os.environ.pop("PACELINE_NATIVE")
        if before is not None:
            os.environ["PACELINE_NATIVE"] = before
    if not isinstance(engine, TorchEngine):
        raise SystemExit("bench.engine needs a real model")
    return engine


def timed(work: Callable[[], object]) -> float:
    """Seconds a work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def step_of(engine: TorchEngine, shape: Shape) -> tuple[Callable[[], object], int]:
    """The step of a shape on made-up histories, and the bytes of KV it attends to."""
    room = -(-(shape.context + shape.tokens) // 16) * 16
    scratch = engine.scratch(shape.sessions * room)
    slices = []
    for number in range(shape.sessions):
        scratch.session(str(number), shape.context, shape.tokens)
        tokens = tuple(5 + i for i in range(shape.tokens))
        slices.append(Slice(str(number), shape.context, tokens, shape.tokens, GREEDY, 1))
    plan = StepPlan(0, tuple(slices))
    position = sum(tensor[0].nbytes for tensor in (*scratch.store.keys, *scratch.store.values))
    return lambda: engine.forward(plan, scratch), shape.sessions * (shape.context + shape.tokens) * position


def against_floor(ours: TorchEngine, torchs: TorchEngine, products: list[Product], shape: Shape, repeats: int) -> bool:
    """Time a shape, print it, and say whether its bar is met."""
    rows = shape.sessions * shape.tokens
    step, kv_bytes = step_of(ours, shape)
    plain, _ = step_of(torchs, shape)
    floor = Floor(products, rows=rows, sampled=rows, kv_bytes=kv_bytes, dtype=DTYPE)
    works: dict[str, Callable[[], float]] = {
        "step": lambda: timed(step),
        **{way: lambda way=way: floor.multiply(way) for way in floor.ways},  # type: ignore[misc]
        "read": floor.read,
        "on torch": lambda: timed(plain),
    }
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(work())
    best = min(floor.ways, key=lambda way: statistics.median(seconds[way]))
    least = [multiplied + read for multiplied, read in zip(seconds[best], seconds["read"], strict=True)]
    told = ", ".join(f"{name} {stats.spread([1e3 * s for s in taken])}" for name, taken in seconds.items())
    print(f"{shape}: ms {told}")
    print(f"{shape}: on torch / step {stats.ratio(seconds['on torch'], seconds['step'])}, products by {best}")
    return stats.at_most(f"{shape}, step / floor", stats.ratio(seconds["step"], least), shape.bar)


def beside_hugging_face(ours: TorchEngine, model: Any, tokens: int, repeats: int, context: int = 256) -> None:
    """Print one session's step beside transformers' own."""
    step, _ = step_of(ours, Shape(1, tokens, context, 0))
    drafts = torch.arange(5, 5 + tokens)[None]
    with torch.inference_mode():
        cache = model(torch.arange(5, 5 + context)[None], use_cache=True).past_key_values

    @torch.inference_mode()
    def own() -> float:
        taken = timed(lambda: model(drafts, past_key_values=cache, use_cache=True).logits)
        cache.crop(-tokens)
        return taken

    own(), step()
    pairs = [(own(), timed(step)) for _ in range(repeats)]
    theirs, mine = ([1e3 * pair[i] for pair in pairs] for i in (0, 1))
    print(f"1 × {tokens} at {context}: ms Hugging Face {stats.spread(theirs)}, step {stats.spread(mine)}, "
          f"Hugging Face / step {stats.ratio(theirs, mine)}")  # fmt: skip


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=9, help="interleaved timings of each work (default: 9)")
    arguments = options.parse_args()
    repeats = max(arguments.repeats, 7)
    torch.set_num_threads(arguments.threads)
    model = load_model(models.fetch(arguments.model), dtype=DTYPE).eval()
    products = products_of(model)
    ours, torchs = load(arguments, native=True), load(arguments, native=False)
    facts = ours.info.numerics
    print(f"{processor().vendor}, {facts['cpu_flags']}; torch {facts['torch']}, {arguments.threads} threads")
    print(f"{ours.info.model_id}, {facts['dtype']}: products {facts['matmul']}, attention {facts['attention']}, "
          f"{facts['fused_layers']} layers fused; load {os.getloadavg()[0]:.1f}")  # fmt: skip
    for tokens in (1, 8):
        beside_hugging_face(ours, model, tokens, repeats)
    del model
    met = True
    for shape in SHAPES:
        gc.collect()
        met &= against_floor(ours, torchs, products, shape, repeats)
    return 0 if met or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
