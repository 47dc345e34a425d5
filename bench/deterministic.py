"""Does anything but (target, prompt, sampling, seed) change a token?

The same prompts, greedy, bfloat16, by every combination of: one session at a time or 16, K 0 or 8 (n-gram drafts),
prompts prefilled whole or in chunks. In deterministic mode no token may differ from the first setting's. The other
mode, whose products take whatever row count comes, is run beside it for the count and for its speed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass

from paceline.router.requests import SamplingRequest
from paceline.router.router import Router
from paceline.runtime.cluster_spec import ClusterSpec
from paceline.speculation.params import SpeculationParams

from bench.arguments import COMPUTE_PROMPTS, mixed, parser
from bench.harness import OFF, Answer, answers, cluster, differing_tokens, fixed

PATIENT = {"draft_deadline_ms": 10_000.0, "verify_deadline_ms": 60_000.0}
WHOLE, CHUNK = 1024, 24  # rows of a step; no prompt is longer than the first


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run the same answers."""

    together: int
    k: int
    step_tokens: int

    @property
    def speculation(self) -> SpeculationParams:
        return fixed("ngram", self.k) if self.k else OFF

    def __str__(self) -> str:
        prefill = "whole" if self.step_tokens == WHOLE else f"in chunks of at most {self.step_tokens}"
        return f"{self.together} at once, K {self.k}, prefill {prefill}"


SETTINGS = [Setting(together, k, step) for step in (WHOLE, CHUNK) for together in (1, 16) for k in (0, 8)]


async def run_mode(arguments: Namespace, *, deterministic: bool) -> tuple[int, int, float]:
    """Differing tokens, all tokens, and seconds, over all settings."""
    texts = mixed(arguments.prompts)
    sampling = SamplingRequest(temperature=0.0, max_tokens=arguments.tokens)
    expected: list[Answer] = []
    differing = tokens = 0
    seconds = 0.0
    mode = "deterministic" if deterministic else "other mode"
    for settings in by_cluster():
        flag = str(deterministic).lower()
        changes = (
            f"target.step_tokens={settings[0].step_tokens}",
            f"target.engine.deterministic={flag}",
            COMPUTE_PROMPTS,
        )
        spec = ClusterSpec(
            model=arguments.model,
            drafter_checkpoint="none",
            dtype="bfloat16",
            threads=arguments.threads,
            settings=changes,
        )
        async with cluster(spec, **PATIENT) as router:
            for setting in settings:
                got, took = await timed(router, texts, sampling, setting)
                expected = expected or got
                count = differing_tokens(got, expected)
                total = sum(len(answer.tokens) for answer in got)
                differing, tokens, seconds = differing + count, tokens + total, seconds + took
                print(f"{mode}, {setting}: {count} of {total} tokens differ, {total / took:.0f} tokens/s", flush=True)
    return differing, tokens, seconds


async def timed(
    router: Router, texts: list[str], sampling: SamplingRequest, setting: Setting
) -> tuple[list[Answer], float]:
    """All answers in one setting, and the seconds they took."""
    started = time.perf_counter()
    got = await answers(router, texts, sampling, setting.speculation, concurrency=setting.together, label=str(setting))
    return got, time.perf_counter() - started


def by_cluster() -> Iterator[list[Setting]]:
    """The settings, by what a verifier is started with."""
    for step_tokens in (WHOLE, CHUNK):
        yield [setting for setting in SETTINGS if setting.step_tokens == step_tokens]


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--prompts", type=int, default=50, help="prompts (default: 50)")
    options.add_argument("--tokens", type=int, default=128, help="tokens per answer (default: 128)")
    options.add_argument("--one-mode", action="store_true", help="leave the other mode out; it takes as long again")
    arguments = options.parse_args()
    differing, tokens, seconds = asyncio.run(run_mode(arguments, deterministic=True))
    if not arguments.one_mode:
        others, all_tokens, other_seconds = asyncio.run(run_mode(arguments, deterministic=False))
        print(f"other mode: {others} of {all_tokens} tokens differ")
        print(f"deterministic mode takes {seconds / other_seconds:.2f} times as long as the other")
    print(f"deterministic: {differing} of {tokens} tokens differ between {len(SETTINGS)} settings")
    return 0 if not differing or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
