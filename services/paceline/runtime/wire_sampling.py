"""Protobuf ↔ what shapes a token, what it was drawn from, and how likely it was: the part of ``wire`` that the public
API shares.

``from_*`` functions raise InvalidRequest naming the field when a message breaks a noun's invariant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TypeVar

from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import MAX_SUPPORT, SparseDistribution, TokenLogprobs
from paceline.speculation.params import Grammar, GrammarKind, SamplingParams, VerificationMode
from paceline.v1 import common_pb2 as common

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


def member(kind: type[EnumT], value: int, field: str) -> EnumT:
    """The member of an enumeration a field stands for. Raises InvalidRequest."""
    try:
        return kind(value)
    except ValueError as error:
        expected = "one of " + ", ".join(f"{member.value} ({member.name.lower()})" for member in kind)
        raise InvalidRequest(field, expected=expected, got=value) from error


def require(holds: bool, field: str, expected: str, got: object) -> None:
    """Raises InvalidRequest unless it holds."""
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
        verification_mode=member(VerificationMode, mode, "verification_mode") if mode else VerificationMode.AGREEMENT,
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
    require(fits, "distributions", f"{len(tokens)}, one per token, or none", len(messages))
    return tuple(_distribution(message, token) for message, token in zip(messages, tokens, strict=False))


def _distribution(message: common.SparseDistribution, token: int) -> SparseDistribution:
    ids, probabilities = tuple(message.ids), tuple(message.probabilities)
    count = len(ids)
    require(0 < count <= MAX_SUPPORT, "distributions.ids", f"1 to {MAX_SUPPORT} tokens", count)
    require(len(set(ids)) == count, "distributions.ids", "each token once", ids)
    require(token in ids, "distributions.ids", f"the token drawn, {token}, among them", ids)
    require(len(probabilities) == count, "distributions.probabilities", f"{count}", len(probabilities))
    proper = all(0 < p <= 1 for p in probabilities) and abs(sum(probabilities) - 1) < SUM_TOLERANCE
    require(proper, "distributions.probabilities", "positive numbers that sum to 1", sum(probabilities))
    return SparseDistribution(ids, probabilities)


def to_logprobs(logprobs: Sequence[TokenLogprobs]) -> list[common.TokenLogprobs]:
    return [
        common.TokenLogprobs(logprob=each.logprob, rank=each.rank, top_ids=each.top_ids, top_logprobs=each.top_logprobs)
        for each in logprobs
    ]


def from_logprobs(messages: Sequence[common.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    for message in messages:
        count = len(message.top_ids)
        require(len(message.top_logprobs) == count, "logprobs.top_logprobs", f"{count}", len(message.top_logprobs))
    return tuple(
        TokenLogprobs(each.logprob, each.rank, tuple(each.top_ids), tuple(each.top_logprobs)) for each in messages
    )
