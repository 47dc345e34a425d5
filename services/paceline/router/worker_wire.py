"""What routers and workers say to each other besides rounds: descriptions; and batches of rounds."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.router.pairing import DrafterInfo, DraftInfo, TargetInfo
from paceline.runtime import wire
from paceline.speculation.errors import Unsupported
from paceline.speculation.messages import (
    PROTOCOL_VERSION,
    DraftResult,
    DraftTask,
    StepReport,
    VerifyResult,
    VerifyTask,
)
from paceline.v1 import draft_pb2 as draft
from paceline.v1 import target_pb2 as target


def _check_protocol(version: str) -> None:
    if version != PROTOCOL_VERSION:
        raise Unsupported("protocol_version", got=version, hint=f"this router speaks {PROTOCOL_VERSION}")


def from_target_description(message: target.TargetDescription) -> TargetInfo:
    """Raises Unsupported if the worker speaks another protocol."""
    _check_protocol(message.protocol_version)
    model = message.model
    return TargetInfo(
        incarnation=message.incarnation,
        model_id=model.model_id,
        fingerprint=model.fingerprint,
        numerics_class=model.numerics_class,
        vocab_size=model.vocab_size,
        context_length=model.context_length,
        tokenizer_fingerprint=model.tokenizer_fingerprint,
        eos_token_ids=tuple(model.eos_token_ids),
        max_sessions=message.limits.max_sessions,
        max_draft_tokens=message.limits.max_draft_tokens,
        sampler_version=message.sampler_version,
        cost_curve=tuple((point.tokens, point.seconds) for point in message.cost_curve),
        projectors=tuple(message.projectors),
    )


def from_draft_description(message: draft.DraftDescription) -> DraftInfo:
    """Raises Unsupported if the worker speaks another protocol."""
    _check_protocol(message.protocol_version)
    return DraftInfo(
        incarnation=message.incarnation,
        drafters=tuple(
            DrafterInfo(drafter.name, drafter.model.tokenizer_fingerprint, drafter.needs_features, drafter.projector)
            for drafter in message.drafters
        ),
        default_drafter=message.default_drafter,
        max_sessions=message.limits.max_sessions,
        max_draft_tokens=message.limits.max_draft_tokens,
        sampler_version=message.sampler_version,
    )


def to_draft_batch(router_id: str, tasks: Sequence[DraftTask]) -> draft.DraftBatch:
    return draft.DraftBatch(router_id=router_id, tasks=[wire.to_draft_task(task) for task in tasks])


def to_verify_batch(router_id: str, tasks: Sequence[VerifyTask]) -> target.VerifyBatch:
    return target.VerifyBatch(router_id=router_id, tasks=[wire.to_verify_task(task) for task in tasks])


def from_draft_results(message: draft.DraftBatchResult) -> list[DraftResult]:
    """Raises InvalidRequest, ValueError or AssertionError when the message breaks a noun's invariant."""
    return [wire.from_draft_result(result) for result in message.results]


def from_verify_results(message: target.VerifyBatchResult) -> tuple[list[VerifyResult], StepReport]:
    """Raises InvalidRequest, ValueError or AssertionError when the message breaks a noun's invariant."""
    return [wire.from_verify_result(result) for result in message.results], wire.from_step(message.step)
