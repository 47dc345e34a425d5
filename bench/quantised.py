"""What int8 and int4 weights cost in quality and gain in speed, beside the same model in bfloat16.

Quality: the model answers prompts greedily in bfloat16; every model then reads prompts and answers, and is asked for
each token. Perplexity of either, the share of greedy tokens that are the same, and the mean KL divergence from the
bfloat16 model's distribution, both over answers. Besides what an engine runs: int4 with the head in int4 too, and int4
with its groups moved by half a group, for a model that was 4-bit before (the demo is) has groups that fit int4's.

Speed: steps of 1, 8 and 64 rows at context 256, timed in turn; and the model's matrix products alone, by the engine's
kernels and by torch's operators for such weights.

The bars: quantised steps are faster at 1 and 8 rows; at 64, where products no longer wait for memory, int8 is at most a
tenth slower and int4, with a scale and an offset to apply every 32 inputs, a third. int8 keeps 95 % of greedy tokens.
"""

from __future__ import annotations

import gc
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from paceline.engine import models
from paceline.engine.interface import Slice, StepPlan
from paceline.engine.linear import NativeLinear
from paceline.engine.loading import EngineSpec, load_engine, load_model
from paceline.engine.machine import processor
from paceline.engine.native import kernels
from paceline.engine.quantised import GROUP, quantise
from paceline.engine.torch_engine import TorchEngine, TorchOptions
from paceline.runtime.text import TextCodec
from paceline.speculation.params import SamplingParams
from torch import Tensor, nn

from bench import stats
from bench.arguments import mixed, parser
from bench.engine import Shape, step_of
from bench.floor import Product, products_of
from bench.progress import progress

GREEDY = SamplingParams(temperature=0)
SHAPES = (Shape(1, 1, 256, 0), Shape(1, 8, 256, 0), Shape(8, 8, 256, 0))
SCHEMES = ("int8", "int4")
BARS = {"int8": (1.0, 1.0, 0.9), "int4": (1.0, 1.0, 0.67)}  # bfloat16's seconds over theirs, in the order of SHAPES
KV_TOKENS = 1024
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and the bfloat16 model's answer."""

    tokens: tuple[int, ...]
    prompt_len: int


@dataclass(frozen=True, slots=True)
class Read:
    """What a model made of the texts."""

    prompts: list[float]  # perplexity of each
    answers: list[float]
    agreed: int  # greedy tokens that are the bfloat16 model's
    divergence: float  # sum of KL over the answers' tokens


def read(engine: TorchEngine, text: Text) -> Tensor:
    """Log probabilities [tokens - 1, V] of what may follow each token but the last."""
    tokens = text.tokens[:-1]
    if not engine.reserve("text", len(tokens)):
        raise RuntimeError(f"expected texts of at most {KV_TOKENS} tokens, got {len(tokens)}")
    logits = engine.forward(StepPlan(0, (Slice("text", 0, tokens, len(tokens), GREEDY, text.prompt_len),)))
    engine.free("text", keep=False)
    return logits.float().log_softmax(1)


def write(engine: TorchEngine, prompt: Sequence[int], count: int) -> Text:
    """The greedy answer to a prompt."""
    tokens, start = list(prompt), 0
    if not engine.reserve("answer", len(prompt) + count):
        raise RuntimeError(f"expected prompts and answers of at most {KV_TOKENS} tokens")
    while len(tokens) < len(prompt) + count and tokens[-1] not in engine.info.eos_token_ids:
        piece = Slice("answer", start, tuple(tokens[start:]), 1, GREEDY, len(prompt))
        start = len(tokens)
        tokens += engine.step(StepPlan(0, (piece,))).samples[0]
    engine.free("answer", keep=False)
    return Text(tuple(tokens), len(prompt))


def compare(engine: TorchEngine, plain: TorchEngine, texts: Sequence[Text]) -> Read:
    """Let a model and the bfloat16 one read every text."""
    prompts, answers = [], []
    agreed, divergence = 0, 0.0
    for text in texts:
        ours, theirs = read(engine, text), read(plain, text)
        lost = -ours.gather(1, torch.tensor(text.tokens[1:])[:, None])[:, 0]
        begin = text.prompt_len - 1
        prompts.append(float(lost[:begin].mean().exp()))
        answers.append(float(lost[begin:].mean().exp()))
        ours, theirs = ours[begin:], theirs[begin:]
        agreed += int((ours.argmax(1) == theirs.argmax(1)).sum())
        divergence += float((theirs.exp() * (theirs - ours)).sum())
    return Read(prompts, answers, agreed, divergence)


def as_if(weight: Tensor, *, bits: int, moved: int) -> Tensor:
    """The numbers quantised weights stand for, groups beginning ``moved`` inputs later."""
    return quantise(weight.roll(-moved, 1), bits).dequantised(weight.dtype).roll(moved, 1)


def changed(arguments: Namespace, *, head_bits: int, moved: int) -> TorchEngine:
    """An engine over weights that were changed to what int4 makes of them, with another head or other groups."""
    model = load_model(models.fetch(arguments.model), dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for module in model.modules():
            if type(module) is nn.Linear:
                bits = head_bits if module is head else 4
                # Not in place: a head may share its weights with the embedding.
                module.weight = nn.Parameter(as_if(module.weight, bits=bits, moved=0 if bits == 8 else moved))
    return TorchEngine(model, model_id="changed", fingerprint="changed", options=TorchOptions(kv_tokens=KV_TOKENS))


def loaded(arguments: Namespace, weights: str) -> tuple[TorchEngine, TextCodec]:
    """The engine as it would serve."""
    spec = EngineSpec(model=arguments.model, threads=arguments.threads, kv_tokens=KV_TOKENS, weights=weights)
    found = load_engine(spec)
    if not isinstance(found.engine, TorchEngine):
        raise SystemExit("bench.quantised needs a real model")
    return found.engine, TextCodec(found.tokenizer_files)


def quality(arguments: Namespace, engines: dict[str, TorchEngine], codec: TextCodec) -> bool:
    """Print what every model makes of the same texts; whether int8 stays close."""
    plain = engines["bfloat16"]
    texts = []
    with progress("answers", arguments.prompts) as step:
        for text in mixed(arguments.prompts):
            prompt = codec.encode(codec.render_chat([{"role": "user", "content": text}]))
            texts.append(write(plain, prompt, arguments.tokens))
            step()
    reference = compare(plain, plain, texts)
    total = reference.agreed  # all of them
    variants: dict[str, Callable[[], TorchEngine]] = {name: partial(engines.__getitem__, name) for name in SCHEMES}
    variants["int4, head int4"] = partial(changed, arguments, head_bits=4, moved=0)
    variants[f"int4, groups moved by {GROUP // 2}"] = partial(changed, arguments, head_bits=8, moved=GROUP // 2)
    print(f"quality over {len(texts)} prompts, {total} tokens of greedy answers in bfloat16:")
    kept = {}
    for name, engine_of in variants.items():
        found = compare(engine_of(), plain, texts)
        kept[name] = found.agreed / total
        print(f"{name}: perplexity / bfloat16's of prompts {stats.ratio(found.prompts, reference.prompts)}, of answers "
              f"{stats.ratio(found.answers, reference.answers)}; greedy tokens kept {kept[name]:.1%}; "
              f"KL {found.divergence / total:.4f}", flush=True)  # fmt: skip
    met = kept["int8"] >= 0.95
    print(f"bar: greedy tokens int8 keeps at least 95 %: {kept['int8']:.1%} {'met' if met else 'MISSED'}")
    return met


def speed(engines: dict[str, TorchEngine], repeats: int) -> bool:
    """Print steps of quantised models beside bfloat16's; whether the bars are met."""
    met = True
    for place, shape in enumerate(SHAPES):
        gc.collect()
        works = {name: step_of(engine, shape)[0] for name, engine in engines.items()}
        seconds = dict(zip(works, stats.interleaved(repeats, *works.values()), strict=True))
        told = ", ".join(f"{name} {stats.spread([1e3 * s for s in taken])}" for name, taken in seconds.items())
        print(f"step {shape}: ms {told}")
        for name in SCHEMES:
            ratio = stats.ratio(seconds["bfloat16"], seconds[name])
            met &= stats.at_least(f"step {shape}, bfloat16 / {name}", ratio, BARS[name][place])
    return met


def products(shapes: Sequence[Product], rows: int, repeats: int) -> None:
    """Print a model's bare products by the kernels and by torch's operators, with made-up weights."""
    ours = kernels(torch.bfloat16, torch.device("cpu"))
    if ours is None or not ours.multiplies_integers:
        print("products: no kernels for integers here")
        return
    inputs = {shape.k: torch.randn(rows, shape.k).to(torch.bfloat16) for shape in shapes}
    works: dict[str, Work] = {}
    for name, bits in (("bfloat16", 16), ("int8", 8), ("int4", 4)):
        layers = [(NativeLinear(_weights(shape, bits), None, kernels=ours), inputs[shape.k]) for shape in shapes]
        works[name] = partial(_each, layers)
    works["torch int8"] = partial(_each, [(_torch_int8(shape), inputs[shape.k]) for shape in shapes])
    if all(shape.n % 16 == 0 and shape.k % GROUP == 0 for shape in shapes):  # others it refuses
        works["torch int4"] = partial(_each, [(_torch_int4(shape), inputs[shape.k]) for shape in shapes])
    seconds = dict(zip(works, stats.interleaved(repeats, *works.values()), strict=True))
    told = [f"{name} {stats.spread([1e3 * s for s in taken])}" for name, taken in seconds.items()]
    told += [
        f"torch {name} / {name} {stats.ratio(seconds[f'torch {name}'], seconds[name])}"
        for name in SCHEMES
        if f"torch {name}" in seconds
    ]
    print(f"products of {rows} rows: ms {', '.join(told)}", flush=True)


def _each(layers: Sequence[tuple[Callable[[Tensor], Tensor], Tensor]]) -> None:
    for layer, rows in layers:
        layer(rows)


def _weights(shape: Product, bits: int) -> Any:
    weight = (0.02 * torch.randn(shape.n, shape.k)).to(torch.bfloat16)
    return weight if bits == 16 else quantise(weight, bits)


def _torch_int8(shape: Product) -> Callable[[Tensor], Tensor]:
    quantised = quantise(_weights(shape, 16), 8)
    scales = quantised.scales[:, 0].contiguous()
    return lambda rows: torch.ops.aten._weight_int8pack_mm(rows, quantised.integers, scales)  # noqa: SLF001


def _torch_int4(shape: Product) -> Callable[[Tensor], Tensor]:
    quantised = quantise(_weights(shape, 16), 4)
    assert quantised.offsets is not None
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantised.integers.int(), 1)  # noqa: SLF001
    # Its offset is of the integer 8.
    middles = (quantised.offsets.float() + 8 * quantised.scales.float()).to(torch.bfloat16)
    both = torch.stack([quantised.scales.t(), middles.t()], 2).contiguous()
    return lambda rows: torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, GROUP, both)  # noqa: SLF001


def _shapes(arguments: Namespace) -> Iterator[Product]:
    yield from products_of(load_model(models.fetch(arguments.model), dtype=torch.bfloat16))


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--prompts", type=int, default=24, help="prompts (default: 24)")
    options.add_argument("--tokens", type=int, default=96, help="tokens per answer (default: 96)")
    options.add_argument("--repeats", type=int, default=15, help="interleaved timings of each work (default: 15)")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {name: loaded(arguments, "" if name == "bfloat16" else name) for name in ("bfloat16", *SCHEMES)}
    engines = {name: engine for name, (engine, _) in found.items()}
    print(f"{processor().vendor}, torch {torch.__version__}, {arguments.threads} threads; " + "; ".join(
          f"{engine.info.model_id}: products {engine.info.numerics['matmul']}" for engine in engines.values()
    ))  # fmt: skip
    with torch.inference_mode():
        met = speed(engines, max(arguments.repeats, stats.MIN_REPEATS))
        shapes = list(_shapes(arguments))
        for rows in (1, 8, 64):
            products(shapes, rows, max(arguments.repeats // 2, stats.MIN_REPEATS))
        met &= quality(arguments, engines, found["bfloat16"][1])
    return 0 if met or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
