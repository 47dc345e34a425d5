"""What a seeded sample costs, beside the step it ends.

Samples real logits of the model at 1, 16 and 64 rows: over the whole vocabulary, and cut by top-k and top-p. The
bar: at 16 rows and the full vocabulary, under 10 % of a 16-row step.
"""

from __future__ import annotations

import statistics
import sys

import torch
from paceline.engine.interface import Engine, Slice, StepPlan
from paceline.engine.loading import EngineSpec, load_engine
from paceline.engine.torch_engine import TorchEngine
from paceline.runtime.text import TextCodec
from paceline.speculation.params import SamplingParams
from paceline.speculation.sampling import Row, sample

from bench import stats
from bench.arguments import mixed, parser

REPEATS = 15
BAR = 0.10
GREEDY = SamplingParams(temperature=0)
OPTIONS = {
    "full vocabulary": SamplingParams(seed=1),
    "top-p 0.95, temperature 0.8": SamplingParams(seed=1, temperature=0.8, top_p=0.95),
    "top-k 50": SamplingParams(seed=1, top_k=50),
    "greedy": GREEDY,
}


def real_logits(engine: TorchEngine, codec: TextCodec, rows: int) -> torch.Tensor:
    """Logits [rows, V] at the ends of real prompts."""
    out = []
    for number, text in enumerate(mixed(24)):
        tokens = tuple(codec.encode(codec.render_chat([{"role": "user", "content": text}])))[:200]
        if not engine.reserve(f"prompt-{number}", len(tokens)):
            raise RuntimeError("kv_tokens is too small for this bench")
        piece = Slice(f"prompt-{number}", 0, tokens, min(len(tokens), 3), GREEDY, len(tokens))
        out.append(engine.forward(StepPlan(number, (piece,))))
        engine.free(f"prompt-{number}")
    return torch.cat(out)[:rows].clone()


def step_of(engine: Engine, rows: int, context: int) -> StepPlan:
    """A greedy step of ``rows`` one-token slices, each after ``context`` tokens that are in the engine already."""
    slices = []
    for number in range(rows):
        name = f"session-{number}"
        if not engine.reserve(name, context + 1):
            raise RuntimeError("kv_tokens is too small for this bench")
        engine.step(StepPlan(0, (Slice(name, 0, tuple(range(5, 5 + context)), 0, GREEDY, context),)))
        slices.append(Slice(name, context, (7,), 1, GREEDY, context))
    return StepPlan(1, tuple(slices))


def main() -> int:
    arguments = parser(__doc__).parse_args()
    loaded = load_engine(EngineSpec(model=arguments.model, threads=arguments.threads, kv_tokens=8192))
    engine = loaded.engine
    if not isinstance(engine, TorchEngine):
        raise SystemExit("bench.sampler needs a real model")
    logits = real_logits(engine, TextCodec(loaded.tokenizer_files), 64)
    plan = step_of(engine, 16, 128)
    print(f"{engine.info.model_id}, {logits.dtype}, vocabulary {logits.shape[1]}, milliseconds: median (min–max)")
    for name, params in OPTIONS.items():
        for count in (1, 16, 64):
            rows = [Row(params, position) for position in range(count)]
            piece = logits[:count]
            drawing, stepping = stats.interleaved(REPEATS, lambda: sample(piece, rows), lambda: engine.forward(plan))  # noqa: B023
            share = stats.ratio(drawing, stepping)
            millis = [1e3 * seconds for seconds in drawing]
            print(f"{name:28} {count:3} rows: {stats.spread(millis):24} of a 16-row step: {share}", flush=True)
            if count == 16 and name == "full vocabulary":
                bar = share
                step_ms = 1e3 * statistics.median(stepping)
    print(f"a 16-row step takes {step_ms:.3g} ms")
    met = stats.at_most("16 rows, full vocabulary, share of a step", bar, BAR)
    return 0 if met or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
