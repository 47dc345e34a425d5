"""Plain and speculative decoding through a whole cluster, beside Hugging Face ``generate``.

Tokens per second and τ on four kinds of prompts, one session at a time, bfloat16, greedy, the same threads for
everybody; the five ways take turns prompt by prompt. Then where a round's time goes (the router's share, the network
apart from compute), and how well rounds of 16 sessions share messages. The bar: at least 8 sessions per message.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx
from paceline.runtime.cluster import LocalCluster
from paceline.runtime.cluster_spec import ClusterSpec
from paceline_client import AsyncClient, Generation, Speculation

from bench import stats
from bench.arguments import COMPUTE_PROMPTS, mixed, parser, prompts
from bench.in_process import InProcess

WAYS = {
    "plain": Speculation(mode="off"),
    "ngram": Speculation(mode="fixed", max_draft_tokens=6, drafter="ngram"),
    "dspark": Speculation(mode="fixed", max_draft_tokens=5, drafter="dspark"),
}
HUGGING_FACE = {"HF generate": {}, "HF prompt lookup": {"prompt_lookup_num_tokens": 6}}
ALONE = "engine step"  # of one row, with no cluster around it
SESSIONS = 16
ANSWERS = 40
SESSIONS_PER_MESSAGE_BAR = 8


@dataclass(slots=True)
class Run:
    """One answer one way."""

    seconds: float
    tokens: int
    rounds: int = 0
    generation: Generation | None = None

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


async def generate(client: AsyncClient, text: str, speculation: Speculation, tokens: int) -> Run:
    loop = asyncio.get_running_loop()
    started = loop.time()
    out = await client.generate(
        messages=[{"role": "user", "content": text}], temperature=0.0, max_tokens=tokens, speculation=speculation
    )
    return Run(loop.time() - started, out.usage.completion_tokens, out.speculation.rounds, out)


async def one_prompt(client: AsyncClient, rivals: InProcess, text: str, tokens: int) -> dict[str, Run]:
    """The five ways in turn, and one step of the engine alone."""
    runs = {name: await generate(client, text, way, tokens) for name, way in WAYS.items()}
    generation = runs["plain"].generation
    assert generation is not None
    prompt = generation.started.prompt_token_ids
    for name, options in HUGGING_FACE.items():
        ids, seconds = await rivals.greedy(prompt, tokens, **options)
        runs[name] = Run(seconds, len(ids))
    runs[ALONE] = Run(await rivals.step_seconds(prompt), 1)
    return runs


def show_speeds(kind: str, results: Sequence[dict[str, Run]]) -> None:
    for name in (*WAYS, *HUGGING_FACE):
        runs = [result[name] for result in results]
        line = f"{kind:11} {name:17} tokens/s {stats.spread([run.speed for run in runs]):22}"
        generations = [run.generation for run in runs if run.generation is not None]
        lengths = [length for out in generations if (length := out.speculation.accepted_length) is not None]
        if lengths:
            line += f" τ {statistics.fmean(lengths):.2f}"
            per_step = sum(run.tokens for run in runs) / sum(run.rounds for run in runs)
            line += f", {per_step:.2f} tokens a target step"
        print(line, flush=True)


def show_ratios(results: Sequence[dict[str, Run]]) -> None:
    """Speed-ups over all prompts, pair by pair."""
    pairs = [
        ("plain", "HF generate"),
        ("ngram", "plain"),
        ("dspark", "plain"),
        ("ngram", "HF generate"),
        ("ngram", "HF prompt lookup"),
    ]
    for ours, other in pairs:
        faster = stats.ratio([r[ours].speed for r in results], [r[other].speed for r in results])
        print(f"{ours} over {other}: {faster} times the tokens/s")


def show_round(results: Sequence[dict[str, Run]]) -> None:
    """Milliseconds per round, one session: the router's own work, the network, and the workers."""
    for name in WAYS:
        parts: dict[str, float] = defaultdict(float)
        rounds = 0
        for result in results:
            out = result[name].generation
            assert out is not None
            rounds += out.speculation.rounds
            for part in ("router_us", "network_us", "draft_wait_us", "verify_wait_us"):
                parts[part] += getattr(out.speculation, part)
            parts["total_us"] += 1e6 * result[name].seconds
        per_round = {part: micros / 1000 / max(1, rounds) for part, micros in parts.items()}
        share = per_round["router_us"] / per_round["total_us"]
        print(
            f"a round, {name:6}: {per_round['total_us']:.1f} ms, of it router {per_round['router_us']:.2f} ms "
            f"({share:.1%}), network {per_round['network_us']:.2f} ms, waiting for drafts "
            f"{per_round['draft_wait_us']:.1f} ms, for verdicts {per_round['verify_wait_us']:.1f} ms"
        )


def show_step(results: Sequence[dict[str, Run]]) -> None:
    """A target step in its service, prefill included, beside one of the engine alone."""
    alone = [result[ALONE].seconds for result in results]
    served = []
    for result in results:
        out = result["plain"].generation
        assert out is not None
        waited = out.speculation.verify_wait_us - out.speculation.network_us
        served.append(waited / 1e6 / out.speculation.rounds)
    millis = [1e3 * seconds for seconds in alone]
    print(
        f"a step of one row takes {stats.spread(millis)} ms in the engine alone; in the target verifier "
        f"{stats.ratio(served, alone)} times that, the prompt's steps included"
    )


def links(status: object) -> Iterator[dict[str, float]]:
    """Every object in a status that counts messages."""
    if isinstance(status, dict):
        if "messages_sent" in status:
            yield status
        for value in status.values():
            yield from links(value)
    elif isinstance(status, list):
        for value in status:
            yield from links(value)


async def counted(cluster: LocalCluster) -> dict[str, float]:
    """Messages, and sessions in them, both ways, on all of the router's links."""
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=10) as http:
        status = (await http.get("/internal/status")).json()
    found = list(links(status))
    sums = {
        way: sum(link[f"{way}_sent"] + link[f"{way}_received"] for link in found) for way in ("messages", "sessions")
    }
    return sums | {"tokens": status["stats"]["rounds"]["committed_tokens"]}


async def together(cluster: LocalCluster, client: AsyncClient, texts: Sequence[str], tokens: int) -> float:
    """16 sessions at a time, until there is no prompt left for the next one; returns sessions per message."""
    waiting = deque(texts)
    loop = asyncio.get_running_loop()
    ends: list[float] = []  # when the first of them found no prompt
    after: dict[str, float] = {}

    async def rider() -> None:
        while waiting:
            await generate(client, waiting.popleft(), WAYS["ngram"], tokens)
        if not ends:
            ends.append(loop.time())
            after.update(await counted(cluster))

    before, started = await counted(cluster), loop.time()
    await asyncio.gather(*(rider() for _ in range(SESSIONS)))
    messages, sessions, committed = (after[name] - before[name] for name in ("messages", "sessions", "tokens"))
    print(
        f"{SESSIONS} sessions at a time, ngram, {len(texts)} answers: {committed / (ends[0] - started):.0f} tokens/s, "
        f"{sessions / messages:.1f} sessions per message, {messages / committed:.3f} messages per committed token"
    )
    return sessions / messages


async def measure(tokens: int, per_kind: int, model: str, threads: int) -> bool:
    spec = ClusterSpec(model=model, threads=threads, settings=("router.draft_deadline_ms=1000", COMPUTE_PROMPTS))
    rivals = await InProcess.load(model, threads)
    async with LocalCluster(spec) as cluster, AsyncClient(cluster.grpc_address) as client:
        everything = []
        kinds = {kind: texts[:per_kind] for kind, texts in prompts().items()}
        await one_prompt(client, rivals, "Hello!", 16)  # warm-up of all five
        for kind, texts in kinds.items():
            results = [await one_prompt(client, rivals, text, tokens) for text in texts]
            show_speeds(kind, results)
            everything += results
        show_ratios(everything)
        show_round(everything)
        show_step(everything)
        per_message = await together(cluster, client, mixed(ANSWERS), tokens)
    met = per_message >= SESSIONS_PER_MESSAGE_BAR
    print(
        f"bar: sessions per message at least {SESSIONS_PER_MESSAGE_BAR}: {per_message:.1f} {'met' if met else 'MISSED'}"
    )
    return met


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=64, help="tokens per answer (default: 64)")
    options.add_argument("--per-kind", type=int, default=4, help="prompts of each kind (default: 4)")
    arguments = options.parse_args()
    met = asyncio.run(measure(arguments.tokens, arguments.per_kind, arguments.model, arguments.threads))
    return 0 if met or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
