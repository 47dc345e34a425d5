"""Protobuf ↔ the nouns of ``speculation.messages``. The only place that knows both.

``from_*`` functions raise InvalidRequest naming the field when a message breaks a noun's invariant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TypeVar

from paceline.speculation.digest import DIGEST_BYTES
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import (
    MAX_SUPPORT,
    DraftResult,
    DraftTask,
    Fence,
    Finish,
    FinishReason,
    Proposal,
    Resync,
    ResyncReason,
    SessionOpen,
    SparseDistribution,
    StepReport,
    Timing,
    TokenLogprobs,
    TokenSource,
    Trace,
    Verdict,
    VerifyResult,
    VerifyTask,
)
from paceline.speculation.params import Grammar, GrammarKind, SamplingParams, VerificationMode
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2 as draft
from paceline.v1 import target_pb2 as target

EnumT = TypeVar("EnumT", bound=IntEnum)

SUM_TOLERANCE = 1e-3

# Options that are one optional value on the wire and here.
SAMPLING_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "max_tokens",
    "ignore_eos",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "logprobs",
    "prompt_logprobs",
    "relaxed_acceptance",
)


def _member(kind: type[EnumT], value: int, field: str) -> EnumT:
    try:
        return kind(value)
    except ValueError as error:
        expected = "one of " + ", ".join(f"{member.value} ({member.name.lower()})" for member in kind)
        raise InvalidRequest(field, expected=expected, got=value) from error


def _require(holds: bool, field: str, expected: str, got: object) -> None:
    if not holds:
        raise InvalidRequest(field, expected=expected, got=got)


def to_sampling(params: SamplingParams) -> common.SamplingOptions:
    return common.SamplingOptions(
        **{name: getattr(params, name) for name in SAMPLING_FIELDS},
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        logit_bias=dict(params.logit_bias),
        bad_words=[common.TokenSequence(ids=word) for word in params.bad_words],
        grammar=to_grammar(params.grammar),
        verification_mode=int(params.verification_mode),  # type: ignore[arg-type]
    )


def from_sampling(message: common.SamplingOptions) -> SamplingParams:
    """Fields that are unset keep SamplingParams' defaults; resolving them otherwise is the caller's business."""
    given = {name: getattr(message, name) for name in SAMPLING_FIELDS if message.HasField(name)}
    mode = message.verification_mode
    return SamplingParams(
        **given,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        logit_bias=biases_of(message.logit_bias),
        bad_words=tuple(tuple(word.ids) for word in message.bad_words),
        grammar=from_grammar(message.grammar),
        verification_mode=_member(VerificationMode, mode, "verification_mode") if mode else VerificationMode.AGREEMENT,
    )


def biases_of(biases: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    """In the order of token ids: protobuf's maps have none."""
    return tuple(sorted(biases.items()))


def to_grammar(grammar: Grammar | None) -> common.Grammar | None:
    return None if grammar is None else common.Grammar(**{grammar.kind.value: grammar.source})


def from_grammar(message: common.Grammar) -> Grammar | None:
    kind = message.WhichOneof("kind")
    return None if kind is None else Grammar(GrammarKind(kind), getattr(message, kind))


def to_distributions(distributions: Sequence[SparseDistribution]) -> list[common.SparseDistribution]:
    return [common.SparseDistribution(ids=each.ids, probabilities=each.probabilities) for each in distributions]


def from_distributions(
    messages: Sequence[common.SparseDistribution], tokens: Sequence[int]
) -> tuple[SparseDistribution, ...]:
    """One for each token, or none at all."""
    fits = not messages or len(messages) == len(tokens)
    _require(fits, "distributions", f"{len(tokens)}, one per token, or none", len(messages))
    return tuple(_distribution(message, token) for message, token in zip(messages, tokens, strict=False))


def _distribution(message: common.SparseDistribution, token: int) -> SparseDistribution:
    ids, probabilities = tuple(message.ids), tuple(message.probabilities)
    count = len(ids)
    _require(0 < count <= MAX_SUPPORT, "distributions.ids", f"1 to {MAX_SUPPORT} tokens", count)
    _require(len(set(ids)) == count, "distributions.ids", "each token once", ids)
    _require(token in ids, "distributions.ids", f"the token drawn, {token}, among them", ids)
    _require(len(probabilities) == count, "distributions.probabilities", f"{count}", len(probabilities))
    proper = all(0 < p <= 1 for p in probabilities) and abs(sum(probabilities) - 1) < SUM_TOLERANCE
    _require(proper, "distributions.probabilities", "positive numbers that sum to 1", sum(probabilities))
    return SparseDistribution(ids, probabilities)


def to_logprobs(logprobs: Sequence[TokenLogprobs]) -> list[common.TokenLogprobs]:
    return [
        common.TokenLogprobs(logprob=each.logprob, rank=each.rank, top_ids=each.top_ids, top_logprobs=each.top_logprobs)
        for each in logprobs
    ]


def from_logprobs(messages: Sequence[common.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    for message in messages:
        count = len(message.top_ids)
        _require(len(message.top_logprobs) == count, "logprobs.top_logprobs", f"{count}", len(message.top_logprobs))
    return tuple(
        TokenLogprobs(each.logprob, each.rank, tuple(each.top_ids), tuple(each.top_logprobs)) for each in messages
    )


def to_trace(trace: Trace) -> common.TraceContext | None:
    if not trace.traceparent:
        return None
    return common.TraceContext(traceparent=trace.traceparent, tracestate=trace.tracestate)


def from_trace(message: common.TraceContext) -> Trace:
    return Trace(message.traceparent, message.tracestate)


def to_fence(fence: Fence) -> common.Fence:
    return common.Fence(
        session_id=fence.session_id,
        incarnation=fence.incarnation,
        lease_epoch=fence.lease_epoch,
        round_id=fence.round_id,
        base_len=fence.base_len,
        prefix_digest=fence.prefix_digest,
    )


def from_fence(message: common.Fence) -> Fence:
    _require(bool(message.session_id), "fence.session_id", "a session id", "")
    digest = message.prefix_digest
    _require(len(digest) == DIGEST_BYTES, "fence.prefix_digest", f"{DIGEST_BYTES} bytes", digest)
    return Fence(
        session_id=message.session_id,
        incarnation=message.incarnation,
        lease_epoch=message.lease_epoch,
        round_id=message.round_id,
        base_len=message.base_len,
        prefix_digest=digest,
    )


def to_open(opening: SessionOpen) -> common.SessionOpen:
    return common.SessionOpen(
        session_id=opening.session_id,
        lease_epoch=opening.lease_epoch,
        router_id=opening.router_id,
        tokens=opening.tokens,
        prompt_len=opening.prompt_len,
        sampling=to_sampling(opening.sampling),
        choice=opening.choice,
        tenant=opening.tenant,
        request_id=opening.request_id,
        drafter=opening.drafter,
        numerics_class=opening.numerics_class,
        trace=to_trace(opening.trace),
    )


def from_open(message: common.SessionOpen) -> SessionOpen:
    count = len(message.tokens)
    _require(bool(message.session_id), "session_id", "a session id", "")
    _require(0 < message.prompt_len <= count, "prompt_len", f"1 to {count}, the number of tokens", message.prompt_len)
    return SessionOpen(
        session_id=message.session_id,
        lease_epoch=message.lease_epoch,
        router_id=message.router_id,
        tokens=tuple(message.tokens),
        prompt_len=message.prompt_len,
        sampling=from_sampling(message.sampling),
        choice=message.choice,
        tenant=message.tenant,
        request_id=message.request_id,
        drafter=message.drafter,
        numerics_class=message.numerics_class,
        trace=from_trace(message.trace),
    )


def to_timing(timing: Timing) -> common.Timing:
    return common.Timing(queue_us=timing.queue_us, step_us=timing.step_us, residence_us=timing.residence_us)


def from_timing(message: common.Timing) -> Timing:
    return Timing(message.queue_us, message.step_us, message.residence_us)


def to_resync(resync: Resync) -> common.Resync:
    return common.Resync(reason=int(resync.reason), known_len=resync.known_len)  # type: ignore[arg-type]


def from_resync(message: common.Resync) -> Resync:
    return Resync(_member(ResyncReason, message.reason, "resync.reason"), message.known_len)


def to_draft_task(task: DraftTask) -> draft.DraftTask:
    return draft.DraftTask(
        fence=to_fence(task.fence),
        appended=task.appended,
        append_from=task.append_from,
        max_draft_tokens=task.max_draft_tokens,
        trace=to_trace(task.trace),
        deadline_us=task.deadline_us,
    )


def from_draft_task(message: draft.DraftTask) -> DraftTask:
    return DraftTask(
        fence=from_fence(message.fence),
        appended=tuple(message.appended),
        append_from=message.append_from,
        max_draft_tokens=message.max_draft_tokens,
        deadline_us=message.deadline_us,
        trace=from_trace(message.trace),
    )


def to_draft_result(result: DraftResult) -> draft.DraftResult:
    message = draft.DraftResult(fence=to_fence(result.fence), timing=to_timing(result.timing))
    if isinstance(result.outcome, Resync):
        message.resync.CopyFrom(to_resync(result.outcome))
    else:
        message.proposal.SetInParent()
        message.proposal.tokens.extend(result.outcome.tokens)
        message.proposal.drafter = result.outcome.drafter
        message.proposal.proposer_model_id = result.outcome.proposer_model_id
        message.proposal.confidence.extend(result.outcome.confidence)
        message.proposal.distributions.extend(to_distributions(result.outcome.distributions))
    return message


def from_draft_result(message: draft.DraftResult) -> DraftResult:
    kind = message.WhichOneof("outcome")
    _require(kind is not None, "outcome", "a proposal or a resync", kind)
    outcome = from_resync(message.resync) if kind == "resync" else _proposal(message.proposal)
    return DraftResult(from_fence(message.fence), outcome, from_timing(message.timing))


def _proposal(message: draft.DraftProposal) -> Proposal:
    tokens, confidence = tuple(message.tokens), tuple(message.confidence)
    fits = not confidence or len(confidence) == len(tokens)
    _require(fits, "proposal.confidence", f"{len(tokens)} values, one per token, or none", len(confidence))
    distributions = from_distributions(message.distributions, tokens)
    return Proposal(tokens, message.drafter, message.proposer_model_id, confidence, distributions)


def to_verify_task(task: VerifyTask) -> target.VerifyTask:
    return target.VerifyTask(
        fence=to_fence(task.fence),
        draft_tokens=task.proposal.tokens,
        drafter=task.proposal.drafter,
        proposer_model_id=task.proposal.proposer_model_id,
        distributions=to_distributions(task.proposal.distributions),
        trace=to_trace(task.trace),
    )


def from_verify_task(message: target.VerifyTask) -> VerifyTask:
    tokens = tuple(message.draft_tokens)
    distributions = from_distributions(message.distributions, tokens)
    proposal = Proposal(tokens, message.drafter, message.proposer_model_id, distributions=distributions)
    return VerifyTask(from_fence(message.fence), proposal, from_trace(message.trace))


def to_finish(finish: Finish) -> common.Finish:
    return common.Finish(
        reason=int(finish.reason),  # type: ignore[arg-type]
        stop_token_id=finish.stop_token_id,
        stop_string=finish.stop_string,
    )


def from_finish(message: common.Finish) -> Finish:
    return Finish(
        _member(FinishReason, message.reason, "finish.reason"),
        message.stop_token_id if message.HasField("stop_token_id") else None,
        message.stop_string if message.HasField("stop_string") else None,
    )


def to_verify_result(result: VerifyResult) -> target.VerifyResult:
    message = target.VerifyResult(fence=to_fence(result.fence), timing=to_timing(result.timing))
    if isinstance(result.outcome, Resync):
        message.resync.CopyFrom(to_resync(result.outcome))
        return message
    verdict = result.outcome
    message.verdict.CopyFrom(
        target.Verdict(
            tokens=verdict.tokens,
            sources=[int(source) for source in verdict.sources],  # type: ignore[misc]
            verify_len=verdict.verify_len,
            accepted=verdict.accepted,
            text=verdict.text,
            finish=to_finish(verdict.finish) if verdict.finish else None,
            verifier_model_id=verdict.verifier_model_id,
            logprobs=to_logprobs(verdict.logprobs),
            prompt_logprobs=to_logprobs(verdict.prompt_logprobs),
            lossy=verdict.lossy,
        )
    )
    return message


def from_verify_result(message: target.VerifyResult) -> VerifyResult:
    kind = message.WhichOneof("outcome")
    _require(kind is not None, "outcome", "a verdict or a resync", kind)
    outcome = from_resync(message.resync) if kind == "resync" else _verdict(message.verdict)
    return VerifyResult(from_fence(message.fence), outcome, from_timing(message.timing))


def _verdict(message: target.Verdict) -> Verdict:
    sources = tuple(_member(TokenSource, source, "verdict.sources") for source in message.sources)
    count, most = len(message.tokens), message.verify_len
    _require(len(sources) == count, "verdict.sources", f"{count}, one per token", len(sources))
    ordered = all(source is TokenSource.ACCEPTED for source in sources[:-1])
    _require(ordered, "verdict.sources", "accepted before the last", sources)
    _require(message.accepted <= most, "verdict.accepted", f"at most verify_len, {most}", message.accepted)
    reported = len(message.logprobs)
    _require(reported in (0, count), "verdict.logprobs", f"{count}, one per token, or none", reported)
    return Verdict(
        tokens=tuple(message.tokens),
        sources=sources,
        verify_len=most,
        accepted=message.accepted,
        text=message.text,
        finish=from_finish(message.finish) if message.HasField("finish") else None,
        verifier_model_id=message.verifier_model_id,
        logprobs=from_logprobs(message.logprobs),
        prompt_logprobs=from_logprobs(message.prompt_logprobs),
        lossy=message.lossy,
    )


def to_step(report: StepReport) -> target.StepReport:
    return target.StepReport(
        step_id=report.step_id, sessions=report.sessions, tokens=report.tokens, duration_us=report.duration_us
    )


def from_step(message: target.StepReport) -> StepReport:
    return StepReport(message.step_id, message.sessions, message.tokens, message.duration_us)
