"""Do committed tokens have the target's distribution, with every sampling option, in both verification modes?

Answers of a model that is a table of five tokens are generated under many seeds and choices through the real path:
model drafter, session, verifier, engine step. Their law is known exactly, so chi-square tests can ask of the committed
tokens

- their marginals, at every position;
- their joint law at adjacent positions;
- what follows a token that a rejected draft was replaced by, given all before it: across the boundary of a rejection.

All tests of all options together raise a false alarm once in a hundred runs of fresh seeds (Bonferroni); the seeds are
fixed. That the tests would tell is shown by planting biases: of total variation 1 % in the target, and a drafter that
draws from another distribution than it says.

Shaping is the service's own code on both sides; it is held to a reference of its own in tests/unit.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context

import torch
from paceline.speculation.messages import TokenSource
from paceline.speculation.params import SamplingParams, VerificationMode
from scipy import stats

from bench.committed import (
    LENGTH,
    Answer,
    Case,
    Misreporting,
    NoRepeats,
    Tokens,
    answers,
    crossings,
    drafter,
    exact,
    padded,
    target,
)
from bench.progress import progress

FALSE_ALARM = 0.01  # of all tests together
LEAST_EXPECTED = 5.0  # of a cell; rarer outcomes are counted together
PLANTED_TV = 0.01
OPEN = SamplingParams(max_tokens=LENGTH, ignore_eos=True)
CASES = {
    case.name: case
    for case in (
        Case("plain", OPEN),
        Case("temperature 0.7", replace(OPEN, temperature=0.7)),
        Case("top-k 3", replace(OPEN, top_k=3)),
        Case("top-p 0.8", replace(OPEN, top_p=0.8)),
        Case("min-p 0.3", replace(OPEN, min_p=0.3)),
        Case("repetition penalty 1.5", replace(OPEN, repetition_penalty=1.5)),
        Case("presence penalty 0.8", replace(OPEN, presence_penalty=0.8)),
        Case("frequency penalty 0.6", replace(OPEN, frequency_penalty=0.6)),
        Case("logit bias", replace(OPEN, logit_bias=((0, -1.0), (2, 1.5)))),
        Case("stop token", replace(OPEN, stop_token_ids=(3,))),
        Case("min tokens 3", replace(OPEN, stop_token_ids=(3,), min_tokens=3)),
        Case("bad words", replace(OPEN, bad_words=((2,), (0, 1), (1, 3, 0)))),
        Case("grammar", OPEN, grammar=NoRepeats),
        Case("logprobs", replace(OPEN, logprobs=2)),
        Case(
            "all together",
            replace(
                OPEN, temperature=1.3, top_k=4, top_p=0.95, min_p=0.05, repetition_penalty=1.2, presence_penalty=0.3,
                logit_bias=((1, 0.5),), stop_token_ids=(3,), min_tokens=2, bad_words=((0, 1),),
            ),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """One option in one mode, or a planted bias."""

    case: str
    mode: VerificationMode
    draws: int
    planted: str = ""  # "", "target" or "drafter"

    @property
    def name(self) -> str:
        what = {"target": f"PLANTED target off by {PLANTED_TV:.0%}", "drafter": "PLANTED q not drawn from"}
        return f"{what.get(self.planted, self.case)}, {self.mode.name.lower()}"


@dataclass(frozen=True, slots=True)
class Report:
    """What the tests said."""

    job: Job
    draws: int  # committed tokens
    accepted: int
    pvalues: dict[str, float]

    def line(self, level: float) -> str:
        worst = min(self.pvalues, key=lambda name: self.pvalues[name])
        kinds: dict[str, float] = {}
        for name, pvalue in self.pvalues.items():
            kind = name.split(" ")[0]
            kinds[kind] = min(pvalue, kinds.get(kind, 1.0))
        told = ", ".join(f"{kind} {pvalue:.2g}" for kind, pvalue in kinds.items())
        off = self.pvalues[worst] < level
        rate = self.accepted / self.draws
        return f"{self.job.name:46} {self.draws:7} draws, {rate:4.0%} accepted; least p: {told}{'  OFF' * off}"


def chi_square(observed: Sequence[float], expected: Sequence[float]) -> tuple[float, int]:
    """Statistic and degrees of freedom, cells too rare to count on their own taken together."""
    often = [(o, e) for o, e in zip(observed, expected, strict=True) if e >= LEAST_EXPECTED]
    rare = [(o, e) for o, e in zip(observed, expected, strict=True) if e < LEAST_EXPECTED]
    cells = often + ([(sum(o for o, _ in rare), sum(e for _, e in rare))] if rare else [])
    if any(e == 0 and o > 0 for o, e in cells):
        return math.inf, 1
    cells = [(o, e) for o, e in cells if e > 0]
    return sum((o - e) ** 2 / e for o, e in cells), len(cells) - 1


def pvalue(statistic: float, freedom: int) -> float:
    """Probability of a statistic at least so large; 1 where there is nothing to be free about."""
    if freedom:
        return float(stats.chi2.sf(statistic, freedom))
    return 1.0 if statistic < LEAST_EXPECTED else 0.0


def against(found: Sequence[Tokens], law: dict[Tokens, float], places: slice) -> float:
    """p-value of the tokens at some places of the answers."""
    expected: dict[Tokens, float] = {}
    for tokens, chance in law.items():
        expected[tokens[places]] = expected.get(tokens[places], 0.0) + chance * len(found)
    counts = Counter(tokens[places] for tokens in found)
    cells = expected.keys() | counts.keys()
    return pvalue(*chi_square([counts[c] for c in cells], [expected.get(c, 0.0) for c in cells]))


def across(found: Sequence[Answer], after: dict[Tokens, torch.Tensor], source: TokenSource) -> float:
    """p-value of what follows tokens that came to be so, given all before."""
    statistic, freedom = 0.0, 0
    for prefix, counts in crossings(found, source).items():
        shares = after[prefix].tolist()
        part, free = chi_square([counts[token] for token in range(len(shares))], [x * counts.total() for x in shares])
        statistic, freedom = statistic + part, freedom + free
    return pvalue(statistic, freedom)


def run(job: Job) -> Report:
    """Generate and test."""
    torch.set_num_threads(1)
    gc.freeze()  # what torch made at import needn't be gone through again and again
    case = CASES[job.case]
    case = replace(case, params=replace(case.params, verification_mode=job.mode))
    law, after = exact(case)
    engine = target(PLANTED_TV if job.planted == "target" else 0.0)
    proposer = drafter(Misreporting) if job.planted == "drafter" else drafter()
    length = sum(chance * sum(token >= 0 for token in tokens) for tokens, chance in law.items())
    count = math.ceil(job.draws / length * 1.01)  # answers; a little more, for they end by chance
    found = [answer for batch in answers(case, count, engine, proposer) for answer in batch]
    whole = [padded(answer.tokens) for answer in found]
    pvalues = {f"marginal {i}": against(whole, law, slice(i, i + 1)) for i in range(LENGTH)}
    pvalues |= {f"joint {i}": against(whole, law, slice(i, i + 2)) for i in range(LENGTH - 1)}
    pvalues["across rejections"] = across(found, after, TokenSource.CORRECTED)
    sources = [source for answer in found for source in answer.sources]
    return Report(job, len(sources), sources.count(TokenSource.ACCEPTED), pvalues)


def jobs(draws: int, only: Sequence[str]) -> list[Job]:
    """Every option in both modes, and what is planted."""
    modes = (VerificationMode.AGREEMENT, VerificationMode.REJECTION)
    out = [Job(name, mode, draws) for name in CASES for mode in modes if not only or name in only]
    out += [Job("plain", mode, draws, "target") for mode in modes]
    return [*out, Job("plain", VerificationMode.REJECTION, draws, "drafter")]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="exit non-zero if a test is failed, or a bias not caught")
    options.add_argument("--draws", type=int, default=200_000, help="committed tokens per option and mode")
    options.add_argument("--only", action="append", default=[], choices=CASES, help="these options; may be repeated")
    options.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (default: 2)")
    arguments = options.parse_args()
    started = time.monotonic()
    todo = jobs(arguments.draws, arguments.only)
    honest = sum(not job.planted for job in todo)
    level = FALSE_ALARM / (honest * (2 * LENGTH))
    print(f"{honest} options and modes, {2 * LENGTH} tests each; a p-value below {level:.1g} is off", flush=True)
    bad = 0
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool, progress("options", len(todo)) as done:
        for future in as_completed([pool.submit(run, job) for job in todo]):
            report = future.result()
            off = min(report.pvalues.values()) < level
            bad += off != bool(report.job.planted) or report.draws < arguments.draws
            print(report.line(level), flush=True)
            done()
    verdict = f"{bad} NOT AS IT SHOULD BE" if bad else "as it should be"
    print(f"{verdict}, in {(time.monotonic() - started) / 60:.1f} minutes")
    return 1 if bad and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
