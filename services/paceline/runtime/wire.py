"""Protobuf ↔ the nouns of ``speculation.messages``. With ``wire_sampling``, the only place that knows both.

``from_*`` functions raise InvalidRequest naming the field when a message breaks a noun's invariant.
"""

from __future__ import annotations

from paceline.runtime.wire_features import from_feed, to_feed
from paceline.runtime.wire_sampling import (
    from_distributions,
    from_logprobs,
    from_sampling,
    member,
    require,
    to_distributions,
    to_logprobs,
    to_sampling,
)
from paceline.speculation.digest import DIGEST_BYTES
from paceline.speculation.messages import (
    DraftResult,
    DraftTask,
    Fence,
    Finish,
    FinishReason,
    Proposal,
    Resync,
    ResyncReason,
    SessionOpen,
    StepReport,
    Timing,
    TokenSource,
    Trace,
    Verdict,
    VerifyResult,
    VerifyTask,
)
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2 as draft
from paceline.v1 import target_pb2 as target


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
    require(bool(message.session_id), "fence.session_id", "a session id", "")
    digest = message.prefix_digest
    require(len(digest) == DIGEST_BYTES, "fence.prefix_digest", f"{DIGEST_BYTES} bytes", digest)
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
    require(bool(message.session_id), "session_id", "a session id", "")
    require(0 < message.prompt_len <= count, "prompt_len", f"1 to {count}, the number of tokens", message.prompt_len)
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
    return Resync(member(ResyncReason, message.reason, "resync.reason"), message.known_len)


def to_draft_task(task: DraftTask) -> draft.DraftTask:
    return draft.DraftTask(
        fence=to_fence(task.fence),
        appended=task.appended,
        append_from=task.append_from,
        max_draft_tokens=task.max_draft_tokens,
        trace=to_trace(task.trace),
        deadline_us=task.deadline_us,
        token_us=task.token_us,
        row_us=task.row_us,
    )


def from_draft_task(message: draft.DraftTask) -> DraftTask:
    return DraftTask(
        fence=from_fence(message.fence),
        appended=tuple(message.appended),
        append_from=message.append_from,
        max_draft_tokens=message.max_draft_tokens,
        deadline_us=message.deadline_us,
        token_us=message.token_us,
        row_us=message.row_us,
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
    require(kind is not None, "outcome", "a proposal or a resync", kind)
    outcome = from_resync(message.resync) if kind == "resync" else _proposal(message.proposal)
    return DraftResult(from_fence(message.fence), outcome, from_timing(message.timing))


def _proposal(message: draft.DraftProposal) -> Proposal:
    tokens, confidence = tuple(message.tokens), tuple(message.confidence)
    fits = not confidence or len(confidence) == len(tokens)
    require(fits, "proposal.confidence", f"{len(tokens)} values, one per token, or none", len(confidence))
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
        feed=to_feed(task.feed),
        features_later=task.features_later,
    )


def from_verify_task(message: target.VerifyTask) -> VerifyTask:
    tokens = tuple(message.draft_tokens)
    distributions = from_distributions(message.distributions, tokens)
    proposal = Proposal(tokens, message.drafter, message.proposer_model_id, distributions=distributions)
    return VerifyTask(
        from_fence(message.fence),
        proposal,
        from_trace(message.trace),
        from_feed(message.feed),
        message.features_later,
    )


def to_finish(finish: Finish) -> common.Finish:
    return common.Finish(
        reason=int(finish.reason),  # type: ignore[arg-type]
        stop_token_id=finish.stop_token_id,
        stop_string=finish.stop_string,
    )


def from_finish(message: common.Finish) -> Finish:
    return Finish(
        member(FinishReason, message.reason, "finish.reason"),
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
            drafter=verdict.drafter,
        )
    )
    return message


def from_verify_result(message: target.VerifyResult) -> VerifyResult:
    kind = message.WhichOneof("outcome")
    require(kind is not None, "outcome", "a verdict or a resync", kind)
    outcome = from_resync(message.resync) if kind == "resync" else _verdict(message.verdict)
    return VerifyResult(from_fence(message.fence), outcome, from_timing(message.timing))


def _verdict(message: target.Verdict) -> Verdict:
    sources = tuple(member(TokenSource, source, "verdict.sources") for source in message.sources)
    count, most = len(message.tokens), message.verify_len
    require(len(sources) == count, "verdict.sources", f"{count}, one per token", len(sources))
    ordered = all(source is TokenSource.ACCEPTED for source in sources[:-1])
    require(ordered, "verdict.sources", "accepted before the last", sources)
    require(message.accepted <= most, "verdict.accepted", f"at most verify_len, {most}", message.accepted)
    reported = len(message.logprobs)
    require(reported in (0, count), "verdict.logprobs", f"{count}, one per token, or none", reported)
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
        drafter=message.drafter,
    )


def to_step(report: StepReport) -> target.StepReport:
    return target.StepReport(
        step_id=report.step_id, sessions=report.sessions, tokens=report.tokens, duration_us=report.duration_us
    )


def from_step(message: target.StepReport) -> StepReport:
    return StepReport(message.step_id, message.sessions, message.tokens, message.duration_us)
