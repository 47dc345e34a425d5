"""What a seeded sample costs, beside the step it ends.

Samples real logits of the model at 1, 16 and 64 rows: over the whole vocabulary, and cut by top-k and top-p. The
bar: at 16 rows and the full vocabulary, under 10 % of a step of 16 rows, even of the cheapest kind, one session's.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial

import torch
from paceline.engine.interface import Engine, Slice, StepPlan
from paceline.engine.loading import EngineSpec, load_engine
from paceline.engine.torch_engine import TorchEngine
from paceline.runtime.text import TextCodec
from paceline.speculation.params import SamplingParams
from paceline.speculation.sampling import Row

from bench import stats
from bench.arguments import mixed, parser

REPEATS = 15
ROWS = 16  # of the steps compared with
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


def step_of(engine: Engine, sessions: int, rows: int, context: int) -> StepPlan:
    """A greedy step of ``rows`` tokens in all, each session's after ``context`` that are in the engine already."""
    slices = []
    for number in range(sessions):
        name = f"{sessions}-{number}"
        if not engine.reserve(name, context + rows):
            raise RuntimeError("kv_tokens is too small for this bench")
        engine.step(StepPlan(0, (Slice(name, 0, tuple(range(5, 5 + context)), 0, GREEDY, context),)))
        each = rows // sessions
        slices.append(Slice(name, context, (7,) * each, each, GREEDY, context))
    return StepPlan(1, tuple(slices))


def main() -> int:
    arguments = parser(__doc__).parse_args()
    loaded = load_engine(EngineSpec(model=arguments.model, threads=arguments.threads, kv_tokens=8192))
    engine = loaded.engine
    if not isinstance(engine, TorchEngine):
        raise SystemExit("bench.sampler needs a real model")
    logits = real_logits(engine, TextCodec(loaded.tokenizer_files), 64)
    plans = [step_of(engine, sessions, ROWS, 128) for sessions in (1, ROWS)]
    print(f"{engine.info.model_id}, {logits.dtype}, vocabulary {logits.shape[1]}, milliseconds: median (min–max);")
    print(f"share of a step of {ROWS} rows of one session, and of a row for each of {ROWS} sessions")
    for name, params in OPTIONS.items():
        for count in (1, 16, 64):
            rows = [Row(params, position) for position in range(count)]
            piece = logits[:count]
            works = [partial(engine.sample, piece, rows), *(partial(engine.forward, plan) for plan in plans)]
            drawing, alone, together = stats.interleaved(REPEATS, *works)
            shares = stats.ratio(drawing, alone), stats.ratio(drawing, together)
            millis = [1e3 * seconds for seconds in drawing]
            print(f"{name:28} {count:3} rows: {stats.spread(millis):24} {shares[0]!s:24} {shares[1]}", flush=True)
            if count == ROWS and name == "full vocabulary":
                bar = shares[0]
                step_ms = [1e3 * statistics.median(seconds) for seconds in (alone, together)]
    print(f"a step of {ROWS} rows takes {step_ms[0]:.3g} ms for one session, {step_ms[1]:.3g} ms for {ROWS}")
    met = stats.at_most(f"{ROWS} rows, full vocabulary, share of a step of one session", bar, BAR)
    return 0 if met or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
