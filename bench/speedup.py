"""What speculation brings, on any folder of prompts ({"turns": […]}, one JSON object a line, one file a set).

First the whole way, one session at a time, bfloat16: ``auto`` as it is served, which drafts only what pays, over our
own plain decoding, prompt by prompt in turn, and over Hugging Face's plain ``generate``. The prompts that looked worst
are measured again, for the least of many noisy ratios is low by chance: their intervals are of the new pairs alone.
Then how far drafts get, greedy: the accepted length τ of the shipped drafter, of n-gram lookup, and of both together
(``auto``), each asked for the same K in every round; and at temperature 1 in both verification modes. Every greedy
answer, and every agreement answer, must be plain decoding's, token for token.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from paceline.cli.asking import Answered, Ask, answer, read_prompts
from paceline.runtime.cluster import LocalCluster
from paceline.runtime.cluster_spec import ClusterSpec
from paceline.speculation.figures import Figures, mean
from paceline_client import AsyncClient, Speculation

from bench import stats
from bench.arguments import COMPUTE_PROMPTS, DRAFTS_COME, PROMPTS, parser
from bench.harness import first_difference
from bench.in_process import InProcess
from bench.progress import progress

PLAIN, AUTO = Speculation(mode="off"), Speculation(mode="auto", drafter="auto")
NGRAM, BOTH = "ngram", "auto"
TAU_BAR, TAU_LEAST_BAR = 1.9, 1.4
SPEEDUP_BAR, WORST_BAR, HUGGING_FACE_BAR = 1.4, 0.95, 2.4
AGAIN = 9  # fresh pairs for each of the prompts that looked worst
Prompt = tuple[str, ...]


@dataclass(slots=True)
class Case:
    """One prompt, and what its answers took."""

    domain: str
    turns: Prompt
    plain: list[Answered] = field(default_factory=list)
    auto: list[Answered] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Plain over speculative seconds, median of the pairs."""
        return statistics.median(p.seconds / a.seconds for p, a in zip(self.plain, self.auto, strict=True))

    @property
    def name(self) -> str:
        return f"{self.domain}: {self.turns[0][:48]!r}, {len(self.plain[0].token_ids)} tokens"


class Bench:
    """One cluster, asked in several ways."""

    def __init__(self, client: AsyncClient, cases: Sequence[Case], arguments: Namespace, shipped: str) -> None:
        self.client, self.cases, self.arguments, self.shipped = client, cases, arguments, shipped
        self.domains = list(dict.fromkeys(case.domain for case in cases))
        self.ask = Ask(max_tokens=arguments.tokens)
        self.differing = 0
        self.compared = 0

    # Accepted lengths -------------------------------------------------------------------------------------------

    async def accepted_lengths(self) -> bool:
        """τ of each drafter on each set, greedy. Returns whether the bars are met."""
        names = (self.shipped, NGRAM, BOTH)
        found: dict[str, dict[str, Figures]] = {}
        for name in names:
            together = 1 if name == BOTH else self.arguments.together  # what it takes depends on what time is worth
            answers = await self._all(self.cases, self._fixed(name), self.ask, f"τ of {name}", together)
            for case, got in zip(self.cases, answers, strict=True):
                self._compare(case.plain[0], got, f"{name}, {case.name}")
            found[name] = self._by_domain(self.cases, answers)
        k = self.arguments.draft_tokens
        print(f"\naccepted length τ, greedy, K = {k} (in brackets, committed per target step over all rounds)")
        self._table([(name, found[name]) for name in names])
        lengths = [found[self.shipped][domain].tau or 0.0 for domain in self.domains]
        met = bar(f"τ of {self.shipped}, mean over sets", statistics.fmean(lengths), TAU_BAR)
        met &= bar(f"τ of {self.shipped}, least of the sets", min(lengths), TAU_LEAST_BAR)
        # Lookup drafts where it finds something, a model always: only what all rounds commit compares the two.
        steps = {
            name: mean([each.committed_per_step for each in figures.values()]) or 0.0
            for name, figures in found.items()
        }  # fmt: skip
        either = max(steps[self.shipped], steps[NGRAM])
        return bar("committed per target step of both together, mean over sets", steps[BOTH], either) and met

    async def sampled(self) -> None:
        """τ at temperature 1, in both modes."""
        cases = [case for case in self.cases if case.turns in self._first(self.arguments.sampled_limit)]
        for mode in ("agreement", "rejection"):
            ask = replace(self.ask, temperature=1.0, verification_mode=mode, seed=7)
            together = self.arguments.together
            plain = await self._all(cases, PLAIN, ask, f"temperature 1, {mode}, plain", together)
            found: dict[str, dict[str, Figures]] = {}
            for name in (self.shipped, NGRAM, BOTH):
                answers = await self._all(cases, self._fixed(name), ask, f"temperature 1, {mode}, {name}", together)
                found[name] = self._by_domain(cases, answers)
                if mode == "agreement":
                    for case, one, other in zip(cases, plain, answers, strict=True):
                        self._compare(one, other, f"temperature 1, {name}, {case.name}")
            print(f"\naccepted length τ, temperature 1, {mode} ({len(cases)} prompts)")
            self._table(list(found.items()))

    def _fixed(self, drafter: str) -> Speculation:
        return Speculation(mode="fixed", max_draft_tokens=self.arguments.draft_tokens, drafter=drafter)

    async def _all(
        self, cases: Sequence[Case], speculation: Speculation, ask: Ask, label: str, together: int
    ) -> list[Answered]:
        places = asyncio.Semaphore(together)

        async def one(number: int, case: Case, done: Callable[[], None]) -> Answered:
            async with places:
                # sessions that share steps should not share noise
                got = await answer(self.client, case.turns, speculation, replace(ask, seed=ask.seed + number))
                done()
                return got

        with progress(label, len(cases)) as done:
            return list(await asyncio.gather(*(one(number, case, done) for number, case in enumerate(cases))))

    # The whole way ----------------------------------------------------------------------------------------------

    async def pairs(self, cases: Sequence[Case], repeats: int, label: str) -> None:
        """Plain and speculative in turn."""
        with progress(label, repeats * len(cases)) as done:
            for repeat in range(repeats):
                for case in cases:
                    for way in (PLAIN, AUTO) if repeat % 2 == 0 else (AUTO, PLAIN):
                        got = await answer(self.client, case.turns, way, self.ask)
                        (case.plain if way is PLAIN else case.auto).append(got)
                    self._compare(case.plain[0], case.auto[-1], case.name)
                    done()

    async def speedups(self) -> bool:
        """Our own plain decoding against what is served."""
        print("\nspeed-up over our own plain decoding, one session, as served (drafts only what pays)")
        for domain in self.domains:
            mine = [case for case in self.cases if case.domain == domain]
            ratios = [case.ratio for case in mine]
            figures = Figures([each for case in mine for got in case.auto for each in got.rounds])
            step = figures.committed_per_step or 0.0
            asked = statistics.fmean(each.drafted > 0 for each in figures.rounds)
            told = f"{step:.2f} tokens a target step, {asked:.0%} of rounds drafted"
            print(f"{domain:12} median {stats.spread(ratios)}, {told}")
        middle = statistics.median(case.ratio for case in self.cases)
        met = bar("median speed-up over our own plain decoding", middle, SPEEDUP_BAR)
        return await self._worst() and met

    async def _worst(self) -> bool:
        suspects = sorted(self.cases, key=lambda case: case.ratio)[: self.arguments.suspects]
        fresh = [Case(case.domain, case.turns) for case in suspects]
        await self.pairs(fresh, AGAIN, "the worst again")
        met = True
        print(f"the {len(fresh)} prompts that looked worst, {AGAIN} fresh pairs each (95 % intervals)")
        for before, case in zip(suspects, fresh, strict=True):
            again = stats.ratio([each.seconds for each in case.plain], [each.seconds for each in case.auto])
            print(f"  {case.name}: first {before.ratio:.3f}, again {again}")
            met &= again.high >= WORST_BAR
        print(f"bar: no prompt below {WORST_BAR:g}: {'met' if met else 'MISSED'}")
        return met

    async def over_hugging_face(self, rivals: InProcess) -> bool:
        """What is served against transformers' plain greedy ``generate``."""
        chosen = self._first(self.arguments.hugging_face)
        cases = [case for case in self.cases if case.turns in chosen]
        ours, theirs = [], []
        with progress("Hugging Face", len(cases)) as done:
            for case in cases:
                got = await answer(self.client, case.turns, AUTO, self.ask)
                messages = [{"role": "user", "content": case.turns[0]}]
                told = await self.client.generate(messages=messages, max_tokens=1, speculation=PLAIN)
                ids, seconds = await rivals.greedy(told.started.prompt_token_ids, self.arguments.tokens)
                ours.append(got.tokens_per_second)
                theirs.append(len(ids) / seconds)
                done()
        return stats.at_least("speed-up over Hugging Face generate", stats.ratio(ours, theirs), HUGGING_FACE_BAR)

    # What is shared ---------------------------------------------------------------------------------------------

    def _first(self, count: int) -> set[Prompt]:
        """The first prompts of each set."""
        return {case.turns for domain in self.domains for case in [c for c in self.cases if c.domain == domain][:count]}

    def _by_domain(self, cases: Sequence[Case], answers: Sequence[Answered]) -> dict[str, Figures]:
        return {
            domain: Figures(
                each
                for case, got in zip(cases, answers, strict=True)
                if case.domain == domain
                for each in got.rounds
            )
            for domain in self.domains
        }  # fmt: skip

    def _table(self, columns: Sequence[tuple[str, dict[str, Figures]]]) -> None:
        print(f"{'':12}" + "".join(f"{name:>18}" for name, _ in columns))
        for domain in self.domains:
            print(f"{domain:12}" + "".join(f"{_two(found[domain]):>18}" for _, found in columns), flush=True)

    def _compare(self, plain: Answered, other: Answered, name: str) -> None:
        where = first_difference(other.token_ids, plain.token_ids)
        self.compared += len(plain.token_ids)
        if where is not None:
            self.differing += 1
            print(f"differs from plain decoding from position {where} on: {name}", flush=True)

    def equality(self) -> bool:
        """Whether every answer compared was plain decoding's."""
        met = self.differing == 0
        print(f"\nbar: answers that differ from plain decoding: {self.differing} of {self.compared} tokens compared "
              f"{'met' if met else 'MISSED'}")  # fmt: skip
        return met


def _two(figures: Figures) -> str:
    tau, step = figures.tau, figures.committed_per_step
    return f"{tau:.2f} ({step:.2f})" if tau is not None and step is not None else "–"


def bar(name: str, value: float, least: float) -> bool:
    """Print whether a value is large enough."""
    met = value >= least
    print(f"bar: {name} at least {least:.3g}: {value:.3g} {'met' if met else 'MISSED'}")
    return met


def shipped_of(drafters: Sequence[str]) -> str:
    """The drafter that has a model: one on hidden states before others.

    Raises ValueError if the cluster offers none.
    """
    models = [name for name in drafters if name not in {NGRAM, BOTH}]
    if not models or BOTH not in drafters:
        raise ValueError(f"expected a cluster with ngram, a model and auto, got drafters {', '.join(drafters)}")
    return next((name for name in models if name != "model"), models[0])


async def measure(arguments: Namespace) -> bool:
    read = read_prompts(arguments.prompts, arguments.limit)
    cases = [Case(domain, turns) for domain, prompts in read.items() for turns in prompts]
    settings = (COMPUTE_PROMPTS, DRAFTS_COME, *arguments.set)
    spec = ClusterSpec(
        model=arguments.model,
        drafter_checkpoint=arguments.drafter_checkpoint,
        threads=arguments.threads,
        settings=settings,
    )
    rivals = await InProcess.load(arguments.model, arguments.threads) if arguments.hugging_face else None
    async with LocalCluster(spec) as cluster, AsyncClient(cluster.grpc_address) as client:
        (model,) = await client.models()
        bench = Bench(client, cases, arguments, arguments.drafter or shipped_of(model.drafters))
        warm = [Case(case.domain, case.turns) for case in cases[:: max(1, len(cases) // 4)]]
        await bench.pairs(warm, 1, "warm-up")
        await bench.pairs(cases, arguments.repeats, "plain and speculative in turn")
        met = await bench.speedups()
        if rivals is not None:
            met &= await bench.over_hugging_face(rivals)
        met &= await bench.accepted_lengths()
        if arguments.sampled_limit:
            await bench.sampled()
        return bench.equality() and met


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--prompts", type=Path, default=PROMPTS, metavar="FOLDER", help="default: bench/prompts")
    options.add_argument("--limit", type=int, default=40, help="prompts of each set (default: 40)")
    options.add_argument("--tokens", type=int, default=128, help="tokens per answer (default: 128)")
    options.add_argument("--drafter-checkpoint", type=Path, metavar="FOLDER", help="default: the cluster's")
    options.add_argument("--drafter", default="", help="the shipped drafter's name (default: the cluster's)")
    options.add_argument("--draft-tokens", type=int, default=7, help="K of the first part (default: 7)")
    options.add_argument("--repeats", type=int, default=2, help="pairs per prompt (default: 2)")
    options.add_argument("--suspects", type=int, default=6, help="prompts measured again (default: 6)")
    options.add_argument("--hugging-face", type=int, default=3, help="prompts of each set, 0 for none (default: 3)")
    options.add_argument("--sampled-limit", type=int, default=10, help="prompts of each set (default: 10; 0 for none)")
    options.add_argument("--together", type=int, default=4, help="sessions at once, where time is not measured")
    options.add_argument("--set", action="append", default=[], metavar="SERVICE.KEY=VALUE", help="of the cluster")
    arguments = options.parse_args()
    return 0 if asyncio.run(measure(arguments)) or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
