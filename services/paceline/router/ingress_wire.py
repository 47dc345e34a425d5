"""The public messages ↔ the nouns of ``router.requests``. Raises InvalidRequest naming the field."""

from __future__ import annotations

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from paceline.router.ingress_context import checked_request_id
from paceline.router.requests import Committed, Completed, Event, Model, Request, Resume, SamplingRequest, Started
from paceline.runtime.wire import to_finish
from paceline.runtime.wire_sampling import SAMPLING_FIELDS, biases_of, from_grammar, to_logprobs
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import TokenSource as Source
from paceline.speculation.messages import Trace
from paceline.speculation.params import SpeculationMode, SpeculationParams, VerificationMode
from paceline.v1 import common_pb2 as common
from paceline.v1 import generation_pb2 as generation

_MODES = {
    generation.SPECULATION_MODE_UNSPECIFIED: SpeculationMode.AUTO,
    generation.SPECULATION_MODE_AUTO: SpeculationMode.AUTO,
    generation.SPECULATION_MODE_OFF: SpeculationMode.OFF,
    generation.SPECULATION_MODE_FIXED: SpeculationMode.FIXED,
}


def refuse_unknown(message: Message, path: str = "") -> None:
    """A field this version does not know is refused, never ignored: it may change what the answer ought to be."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        where = path or message.DESCRIPTOR.name
        got = f"field number {unknown[0].field_number}"
        raise InvalidRequest(where, expected="only fields of this version", got=got, hint="is the client newer?")
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:  # our maps hold numbers
            continue
        inner = f"{path}.{field.name}" if path else field.name
        for each in value if field.is_repeated else (value,):
            refuse_unknown(each, inner)


def from_generate(
    message: generation.GenerateRequest, *, tenant: str, timeout_s: float | None, trace: Trace
) -> Request:
    """A request as the router takes it."""
    refuse_unknown(message)
    kind = message.WhichOneof("input")
    resume = _resume(message.resume) if message.HasField("resume") else None
    if kind is None and resume is None:
        raise InvalidRequest("input", expected="one of text, chat and tokens", got="none of them")
    if kind is not None and resume is not None:
        raise InvalidRequest(
            "resume", expected=f"no {kind} beside it", got="both", hint="it brings the prompt's tokens"
        )
    return Request(
        request_id=checked_request_id(message.request_id, "request_id"),
        model=message.model,
        text=message.text if kind == "text" else None,
        messages=_chat(message.chat) if kind == "chat" else None,
        tokens=_tokens(message),
        sampling=_sampling(message.sampling),
        speculation=_speculation(message.speculation),
        choice=message.choice,
        resume=resume,
        tenant=tenant,
        timeout_s=timeout_s,
        trace=trace,
    )


def _tokens(message: generation.GenerateRequest) -> tuple[int, ...] | None:
    if message.WhichOneof("input") != "tokens":
        return None
    if not message.tokens.ids:
        raise InvalidRequest("tokens.ids", expected="at least one token id", got=[])
    return tuple(message.tokens.ids)


def _chat(message: generation.Chat) -> tuple[tuple[str, str], ...]:
    if not message.messages:
        raise InvalidRequest("chat.messages", expected="at least one message", got=[])
    for index, each in enumerate(message.messages):
        if not each.role:
            raise InvalidRequest(f"chat.messages.{index}.role", expected="a role", got="")
    return tuple((each.role, each.content) for each in message.messages)


def _sampling(message: common.SamplingOptions) -> SamplingRequest:
    given = {name: getattr(message, name) for name in SAMPLING_FIELDS if message.HasField(name)}
    return SamplingRequest(
        **given,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        logit_bias=biases_of(message.logit_bias),
        bad_words=tuple(tuple(word.ids) for word in message.bad_words),
        grammar=from_grammar(message.grammar),
        verification_mode=_verification(message.verification_mode),
    )


def _verification(value: int) -> VerificationMode | None:
    if not value:
        return None
    try:
        return VerificationMode(value)
    except ValueError:
        raise InvalidRequest("sampling.verification_mode", expected="a known mode", got=value) from None


def _speculation(message: generation.SpeculationOptions) -> SpeculationParams:
    if message.mode not in _MODES:
        raise InvalidRequest("speculation.mode", expected="a known mode", got=message.mode)
    return SpeculationParams(
        mode=_MODES[message.mode],
        max_draft_tokens=message.max_draft_tokens if message.HasField("max_draft_tokens") else None,
        drafter=message.drafter,
    )


def _resume(message: generation.Resume) -> Resume:
    if not message.prompt_token_ids:
        raise InvalidRequest("resume.prompt_token_ids", expected="the prompt of the lost answer", got=[])
    if not message.session_id:
        raise InvalidRequest("resume.session_id", expected="the session of the lost answer", got="")
    return Resume(
        prompt_tokens=tuple(message.prompt_token_ids),
        committed=tuple(message.committed_token_ids),
        seed=message.seed,
        numerics_class=message.numerics_class,
        lease_epoch=message.lease_epoch,
        session_id=message.session_id,
    )


def to_response(event: Event) -> generation.GenerateResponse:
    """An event as the client gets it."""
    if isinstance(event, Started):
        return generation.GenerateResponse(started=_started(event))
    if isinstance(event, Committed):
        return generation.GenerateResponse(tokens=_committed(event))
    return generation.GenerateResponse(completed=_completed(event))


def _started(event: Started) -> generation.Started:
    return generation.Started(
        request_id=event.request_id,
        session_id=event.session_id,
        model=event.model,
        numerics_class=event.numerics_class,
        prompt_token_ids=event.prompt_tokens,
        seed=event.seed,
        lease_epoch=event.lease_epoch,
        fingerprint=event.fingerprint,
        class_changed=event.class_changed,
    )


def _committed(event: Committed) -> generation.Tokens:
    return generation.Tokens(
        index=event.index,
        token_ids=event.tokens,
        sources=[int(source) for source in event.sources],  # type: ignore[misc]
        proposer_model_id=event.proposer_model_id,
        verifier_model_id=event.verifier_model_id,
        text=event.text,
        round_id=event.round_id,
        drafter=event.drafter,
        drafted=event.drafted,
        verified=event.verified,
        accepted=event.accepted,
        lease_epoch=event.lease_epoch,
        logprobs=to_logprobs(event.logprobs),
        prompt_logprobs=to_logprobs(event.prompt_logprobs),
        lossy=event.lossy,
        confidence=event.confidence,
    )


def _completed(event: Completed) -> generation.Completed:
    stats, waits = event.stats, event.waits
    return generation.Completed(
        finish=to_finish(event.finish),
        usage=generation.Usage(prompt_tokens=event.prompt_tokens, completion_tokens=event.completion_tokens),
        speculation=generation.SpeculationMetrics(
            rounds=stats.rounds,
            verify_rounds=len(stats.per_round_verified),
            drafted_tokens=stats.drafted,
            verified_tokens=stats.verified,
            accepted_tokens=stats.accepted,
            corrected_tokens=stats.by_source[Source.CORRECTED],
            bonus_tokens=stats.by_source[Source.BONUS],
            target_only_tokens=stats.by_source[Source.TARGET_ONLY],
            per_round_verified=stats.per_round_verified,
            per_round_accepted=stats.per_round_accepted,
            missed_drafts=stats.missed_drafts,
            draft_wait_us=waits.draft_us,
            verify_wait_us=waits.verify_us,
            router_us=waits.router_us,
            network_us=waits.network_us,
        ),
        lossy=stats.lossy,
    )


def to_model(model: Model) -> generation.ModelInfo:
    """A model as ListModels tells it."""
    return generation.ModelInfo(
        id=model.model_id,
        fingerprint=model.fingerprint,
        numerics_class=model.numerics_class,
        context_length=model.context_length,
        drafters=model.drafters,
        targets=model.targets,
        drafts=model.drafts,
        cost_curve=[common.CostPoint(tokens=rows, seconds=seconds) for rows, seconds in model.cost_curve],
    )
