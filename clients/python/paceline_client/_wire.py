"""Protobuf messages → the types of this package."""

from __future__ import annotations

from collections.abc import Iterable

from paceline.v1 import common_pb2, generation_pb2

from paceline_client._types import (
    Finish,
    FinishReason,
    Model,
    SpeculationMetrics,
    Started,
    TokenLogprobs,
    TokenSource,
    Usage,
)

_SOURCES: dict[int, TokenSource] = {
    common_pb2.TOKEN_SOURCE_ACCEPTED: TokenSource.ACCEPTED,
    common_pb2.TOKEN_SOURCE_CORRECTED: TokenSource.CORRECTED,
    common_pb2.TOKEN_SOURCE_BONUS: TokenSource.BONUS,
    common_pb2.TOKEN_SOURCE_TARGET_ONLY: TokenSource.TARGET_ONLY,
}
_REASONS: dict[int, FinishReason] = {
    common_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    common_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}


def source_of(value: int) -> TokenSource:
    """A source by its wire value; one a newer server added is UNKNOWN rather than the end of the answer."""
    return _SOURCES.get(value, TokenSource.UNKNOWN)


def started_of(message: generation_pb2.Started) -> Started:
    """What the server says before the first token."""
    return Started(
        request_id=message.request_id,
        session_id=message.session_id,
        model=message.model,
        fingerprint=message.fingerprint,
        numerics_class=message.numerics_class,
        prompt_token_ids=tuple(message.prompt_token_ids),
        seed=message.seed,
        lease_epoch=message.lease_epoch,
    )


def finish_of(message: common_pb2.Finish) -> Finish:
    """Why the answer ended."""
    return Finish(
        reason=_REASONS.get(message.reason, FinishReason.UNKNOWN),
        stop_token_id=message.stop_token_id if message.HasField("stop_token_id") else None,
        stop_string=message.stop_string if message.HasField("stop_string") else None,
    )


def logprobs_of(messages: Iterable[common_pb2.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    """Log probabilities at some positions, in order."""
    return tuple(
        TokenLogprobs(each.logprob, each.rank, tuple(each.top_ids), tuple(each.top_logprobs)) for each in messages
    )


def usage_of(message: generation_pb2.Usage) -> Usage:
    """Tokens used."""
    return Usage(prompt_tokens=message.prompt_tokens, completion_tokens=message.completion_tokens)


def metrics_of(message: generation_pb2.SpeculationMetrics, before: SpeculationMetrics) -> SpeculationMetrics:
    """The totals of the last stream, on top of the counts of the streams before it."""
    return SpeculationMetrics(
        rounds=before.rounds + message.rounds,
        verify_rounds=before.verify_rounds + message.verify_rounds,
        drafted_tokens=before.drafted_tokens + message.drafted_tokens,
        verified_tokens=before.verified_tokens + message.verified_tokens,
        accepted_tokens=before.accepted_tokens + message.accepted_tokens,
        corrected_tokens=before.corrected_tokens + message.corrected_tokens,
        bonus_tokens=before.bonus_tokens + message.bonus_tokens,
        target_only_tokens=before.target_only_tokens + message.target_only_tokens,
        per_round_verified=before.per_round_verified + tuple(message.per_round_verified),
        per_round_accepted=before.per_round_accepted + tuple(message.per_round_accepted),
        missed_drafts=message.missed_drafts,
        draft_wait_us=message.draft_wait_us,
        verify_wait_us=message.verify_wait_us,
        router_us=message.router_us,
        network_us=message.network_us,
    )


def models_of(message: generation_pb2.ListModelsResponse) -> tuple[Model, ...]:
    """The models on offer."""
    return tuple(
        Model(
            id=model.id,
            fingerprint=model.fingerprint,
            numerics_class=model.numerics_class,
            context_length=model.context_length,
            drafters=tuple(model.drafters),
            targets=model.targets,
            drafts=model.drafts,
            cost_curve=tuple((point.tokens, point.seconds) for point in model.cost_curve),
        )
        for model in message.models
    )
