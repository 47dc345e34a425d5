"""Requests, rounds, runs and steps as the services describe them, for the tests of their spans."""

from __future__ import annotations

from paceline.draft.spans import DraftSpan, RunSpan
from paceline.router.requests import Committed, Completed, Request, SamplingRequest
from paceline.router.spans import RoundFacts
from paceline.speculation.messages import Finish, FinishReason, RoundStats, StepReport, TokenSource, Trace, Verdict
from paceline.target.spans import RoundSpan, StepSpan

A, C, B = TokenSource.ACCEPTED, TokenSource.CORRECTED, TokenSource.BONUS
REQUEST = Request(
    request_id="r-1",
    model="demo",
    messages=(("user", "hi"),),
    sampling=SamplingRequest(temperature=0.7, top_k=40, top_p=0.9, seed=7, max_tokens=12),
    tenant="acme",
)
CALLER = Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=value")
UNSAMPLED = Trace(CALLER.traceparent[:-2] + "00")


def facts(count: int = 3, *, last: TokenSource = C, model: str = "big") -> RoundFacts:
    """``count`` tokens, of which the last is the target's."""
    sources = (A,) * (count - 1) + (last,)
    committed = Committed(
        index=4,
        tokens=tuple(range(100, 100 + count)),
        sources=sources,
        text="",
        proposer_model_id="small",
        verifier_model_id=model,
        drafter="model",
        round_id=9,
        drafted=count,
        verified=count,
        accepted=count - 1,
        lease_epoch=2,
    )
    return RoundFacts(
        committed=committed,
        token_ids=committed.tokens,
        model_ids=("small",) * (count - 1) + (model,),
        verifier_ids=(model,) * count,
        sources=tuple(source.name.lower() for source in sources),
        positions=tuple(range(4, 4 + count)),
        missed_draft=False,
        draft_us=1,
        verify_us=2,
        network_us=3,
        draft_worker="d:1",
        verifier="t:1",
    )


def completed() -> Completed:
    stats = RoundStats()
    stats.add(Verdict((1, 2, 3), (A, A, C), 3, 2), drafted=3, missed=False)
    return Completed(Finish(FinishReason.STOP), prompt_tokens=5, completion_tokens=3, stats=stats)


def run(*traces: Trace, error: str = "") -> RunSpan:
    drafts = tuple(DraftSpan(trace, "s", 9, asked=4, drafted=3) for trace in traces)
    return RunSpan("model", "small", 1_000, 2_000, drafts, error)


def part(trace: Trace, number: int = 0) -> RoundSpan:
    return RoundSpan(trace, f"s{number}", "r-1", "acme", 9, rows=4, verify_len=3, accepted=2, tokens=(100, 101, 102))


def step(*parts: RoundSpan, error: str = "") -> StepSpan:
    return StepSpan(StepReport(77, len(parts), 4 * len(parts), 900), "big", 3_000, 4_000, parts, error)
