"""Does a target verifier keep its size, and what does a shared prefix spare?

(a) The resident set of the target's process after 2,000 sequential requests through a whole cluster, beside that after
    the first 200: short answers to prompts that are all different. The bar: no more than 2 % above it.
(b) Time to first token of prompts that begin with the same 512 words, beside prompts of the same length that begin
    with words of their own; the two take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time

import psutil
from paceline.runtime.cluster import LocalCluster
from paceline.runtime.cluster_spec import ClusterSpec
from paceline_client import AsyncClient, Speculation

from bench import stats
from bench.arguments import parser
from bench.progress import progress

OFF = Speculation(mode="off")
BAR = 0.02
PREFIX_WORDS = 512
KV_TOKENS = 8192  # so few that pages are evicted, and that a leak is not lost in the size of the KV state
MEBIBYTE = 2**20
COMMON_WORDS = """
the and for with that this from have they will one all would there their what out about who get which when make can like
time just him know take people into year your good some could them see other than then now look only come its over think
also back after use two how our work first well way even new want because any these give day
"""
WORDS = COMMON_WORDS.split()


def words(seed: str, count: int) -> str:
    """So many common words, by the seed: nearly each is a token."""
    chosen = random.Random(seed)  # noqa: S311  # which prompts there are
    return " ".join(chosen.choice(WORDS) for _ in range(count))


async def first_token(client: AsyncClient, text: str) -> tuple[float, tuple[int, ...]]:
    """Seconds to the first token of an answer of one, and the prompt's tokens."""
    started = time.perf_counter()
    async with client.stream(text, max_tokens=1, temperature=0.0, speculation=OFF) as stream:
        async for _ in stream:
            break
        seconds = time.perf_counter() - started
        out = await stream.result()
    return seconds, tuple(out.started.prompt_token_ids)


async def resident(cluster: LocalCluster, client: AsyncClient, early: int, late: int, tokens: int) -> bool:
    """Part (a)."""
    pid = cluster.processes["target-0"].pid
    assert pid is not None
    target = psutil.Process(pid)
    sizes = {}
    with progress("requests", late) as done:
        for number in range(1, late + 1):
            prompt = f"{number} {words(str(number), 4 + number % 20)}"
            await client.generate(prompt, max_tokens=tokens, ignore_eos=True, seed=number, speculation=OFF)
            done()
            if number in (early, late):
                sizes[number] = target.memory_info().rss
                print(
                    f"after {number} requests the target's resident set is {sizes[number] / MEBIBYTE:.1f} MiB",
                    flush=True,
                )
    growth = sizes[late] / sizes[early] - 1
    met = growth <= BAR  # what a process gives back is no leak
    print(f"bar: resident set grows by at most {BAR:.0%}: {growth:+.2%} {'met' if met else 'MISSED'}")
    return met


async def sharing(client: AsyncClient, pairs: int) -> None:
    """Part (b)."""
    common = words("common", PREFIX_WORDS)
    await first_token(client, f"{common} {words('warm-up', 8)}")  # computes the shared prefix
    shared, own, prompts = [], [], []
    with progress("prefixes", pairs) as done:
        for number in range(pairs):
            ending = words(f"end {number}", 8)
            seconds, prompt = await first_token(client, f"{common} {ending}")
            shared.append(1e3 * seconds)
            prompts.append(prompt)
            seconds, _ = await first_token(client, f"{words(f'own {number}', PREFIX_WORDS)} {ending}")
            own.append(1e3 * seconds)
            done()
    alike = min(_alike(prompts[0], prompt) for prompt in prompts[1:])
    print(
        f"time to first token, prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens: "
        f"{stats.spread(shared)} ms if the first {alike} are shared, {stats.spread(own)} ms if none are; "
        f"{stats.ratio(own, shared)} times as long"
    )


def _alike(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


async def measure(arguments: argparse.Namespace) -> bool:
    settings = (f"target.engine.kv_tokens={KV_TOKENS}",)
    spec = ClusterSpec(
        drafts=0, model=arguments.model, drafter_checkpoint="none", threads=arguments.threads, settings=settings
    )
    async with LocalCluster(spec) as cluster, AsyncClient(cluster.grpc_address) as client:
        met = await resident(cluster, client, arguments.early, arguments.requests, arguments.tokens)
        await sharing(client, arguments.pairs)
    return met


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=2000, help="sequential requests (default: %(default)s)")
    options.add_argument("--early", type=int, default=200, help="requests before the first look (default: %(default)s)")
    options.add_argument("--tokens", type=int, default=3, help="tokens of an answer (default: %(default)s)")
    options.add_argument("--pairs", type=int, default=8, help="pairs of part (b), 5 or more (default: %(default)s)")
    arguments = options.parse_args()
    if not 0 < arguments.early < arguments.requests or arguments.pairs < stats.MIN_REPEATS:
        options.error(f"expected 0 < --early < --requests and --pairs {stats.MIN_REPEATS} or more")
    return 0 if asyncio.run(measure(arguments)) or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
