"""Is the output exactly the target's, whatever is drafted?

(a) float32, greedy, speculating, against transformers' plain ``generate``: identical, except where the reference's
    two largest logits lie within 1e-3, which are listed as ties; at most two of them.
(b) bfloat16, deterministic, between our own settings: drafters × K × concurrency, greedy and sampled; no token may
    differ from plain decoding of one session at a time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence

from paceline.router.requests import SamplingRequest
from paceline.runtime.cluster_spec import ClusterSpec
from paceline.speculation.params import SpeculationParams

from bench.arguments import COMPUTE_PROMPTS, mixed, parser
from bench.harness import OFF, Answer, answers, cluster, differing_tokens, first_difference, fixed
from bench.progress import progress
from bench.reference import Reference

TIE = 1e-3
MAX_TIES = 2
PATIENT = {"draft_deadline_ms": 10_000.0, "verify_deadline_ms": 60_000.0}  # drafts are to be verified, not missed
SAMPLINGS = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 20_261_122}}


def references(reference: Reference, ours: Sequence[Answer], tokens: int) -> Iterator[list[int]]:
    """What transformers says to the same prompts."""
    with progress("(a) transformers", len(ours)) as done:
        for answer in ours:
            yield reference.greedy(answer.prompt_tokens, tokens)[0]
            done()


async def against_reference(arguments: Namespace) -> bool:
    """Part (a)."""
    texts = mixed(arguments.prompts)
    spec = ClusterSpec(
        model=arguments.model,
        drafter_checkpoint="none",
        dtype="float32",
        threads=arguments.threads,
        settings=(COMPUTE_PROMPTS,),
    )
    sampling = SamplingRequest(temperature=0.0, max_tokens=arguments.tokens)
    async with cluster(spec, **PATIENT) as router:
        ours = await answers(router, texts, sampling, fixed("ngram", 6), concurrency=8, label="(a) ours")
    reference = Reference(arguments.model, "float32", arguments.threads)
    ties = differences = tokens = 0
    for number, (answer, expected) in enumerate(zip(ours, references(reference, ours, arguments.tokens), strict=True)):
        tokens += len(expected)
        where = first_difference(answer.tokens, expected)
        if where is None:
            continue
        gap = reference.top_two_gap([*answer.prompt_tokens, *expected[:where]])
        tie = gap <= TIE
        ties, differences = ties + tie, differences + (not tie)
        print(f"(a) prompt {number} position {where}: {'tie' if tie else 'DIFFERENCE'}, top-two gap {gap:.2g}")
    accepted = sum(answer.stats.accepted for answer in ours)
    print(
        f"(a) float32 greedy, ngram K 6, {len(texts)} prompts, {tokens} tokens ({accepted} accepted drafts) against "
        f"transformers generate: {differences} differences, {ties} ties",
        flush=True,
    )
    return differences == 0 and ties <= MAX_TIES


def settings() -> list[tuple[str, SpeculationParams, int]]:
    """(name, speculation, concurrency); the first is what the others are compared with."""
    drafted = [(name, k) for name in ("ngram", "model") for k in (1, 4, 8)] + [("dspark", 5)]
    kinds = [("off", OFF)] + [(f"{name} K {k}", fixed(name, k)) for name, k in drafted]
    return [(f"{name}, {together} at once", kind, together) for together in (1, 8) for name, kind in kinds]


def report(name: str, got: list[Answer], expected: list[Answer]) -> int:
    """Print one setting's line; returns the number of differing tokens."""
    differing = differing_tokens(got, expected)
    tokens = sum(len(answer.tokens) for answer in got)
    verified = sum(answer.stats.verified for answer in got)
    accepted = sum(answer.stats.accepted for answer in got)
    print(f"(b) {name}: {differing} of {tokens} tokens differ ({accepted} of {verified} drafts accepted)", flush=True)
    return differing


async def between_settings(arguments: Namespace) -> bool:
    """Part (b)."""
    texts = mixed(arguments.setting_prompts)
    spec = ClusterSpec(
        model=arguments.model,
        draft_model=arguments.draft_model,
        dtype="bfloat16",
        threads=arguments.threads,
        settings=(COMPUTE_PROMPTS,),
    )
    total = tokens = 0
    async with cluster(spec, **PATIENT) as router:
        for kind, options in SAMPLINGS.items():
            sampling = SamplingRequest(max_tokens=arguments.setting_tokens, **options)  # type: ignore[arg-type]
            expected: list[Answer] = []
            for name, speculation, together in settings():
                got = await answers(router, texts, sampling, speculation, concurrency=together, label=name)
                expected = expected or got
                total += report(f"{kind}, {name}", got, expected)
                tokens += sum(len(answer.tokens) for answer in got)
    print(f"(b) bfloat16 deterministic: {total} of {tokens} tokens differ between {2 * len(settings())} settings")
    return total == 0


def main() -> int:
    options = parser(__doc__)
    # A drafter that is right about half the time exercises acceptance and rejection alike; speed is no matter here.
    options.add_argument("--draft-model", default="demo@layers=27", help="of the model drafter (default: %(default)s)")
    options.add_argument("--prompts", type=int, default=40, help="prompts of part (a) (default: 40)")
    options.add_argument("--tokens", type=int, default=96, help="tokens of part (a) (default: 96)")
    options.add_argument("--setting-prompts", type=int, default=12, help="prompts of part (b) (default: 12)")
    options.add_argument("--setting-tokens", type=int, default=64, help="tokens of part (b) (default: 64)")
    options.add_argument("--part", choices=("a", "b", "both"), default="both", help="which part (default: both)")
    arguments = options.parse_args()
    started = time.monotonic()
    same = True
    if arguments.part in ("a", "both"):
        same &= asyncio.run(against_reference(arguments))
    if arguments.part in ("b", "both"):
        same &= asyncio.run(between_settings(arguments))
    print(f"{'exact' if same else 'NOT EXACT'}, in {(time.monotonic() - started) / 60:.1f} minutes")
    return 0 if same or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
