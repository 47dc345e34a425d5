"""Every noun survives the wire: serialised, parsed and translated back it is the same; nonsense is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paceline.runtime import wire, wire_features, wire_sampling
from paceline.speculation.digest import DIGEST_BYTES
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.features import FeatureChunk, FeatureWant, Feed
from paceline.speculation.messages import (
    NO_TRACE,
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
from paceline.speculation.params import SamplingParams, VerificationMode
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2 as draft
from paceline.v1 import target_pb2 as target

Noun = TypeVar("Noun")

names = st.text(max_size=12)
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
tokens = st.lists(u32, max_size=8).map(tuple)
# A trace state means nothing without a parent, so it is not sent alone.
traces = st.just(NO_TRACE) | st.builds(Trace, st.text(min_size=1, max_size=12), names)
timings = st.builds(Timing, u64, u64, u64)
steps = st.builds(StepReport, u64, u32, u32, u64)
resyncs = st.builds(Resync, st.sampled_from(ResyncReason), u32)
finishes = st.builds(Finish, st.sampled_from(FinishReason), st.none() | u32, st.none() | names)
fences = st.builds(
    Fence, st.text(min_size=1, max_size=12), names, u64, u64, u32, st.binary(min_size=DIGEST_BYTES, max_size=8)
)
samplings = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 2**31),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    seed=u64,
    max_tokens=st.integers(1, 2**31),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
    stop_token_ids=tokens,
    ignore_eos=st.booleans(),
    repetition_penalty=st.floats(0.1, 10),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=st.dictionaries(u32, st.floats(-100, 100), max_size=4).map(lambda map_: tuple(sorted(map_.items()))),
    min_tokens=st.integers(0, 1),
    bad_words=st.lists(st.lists(u32, min_size=1, max_size=4).map(tuple), max_size=3).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
)


@st.composite
def openings(draw: st.DrawFn) -> SessionOpen:
    ids = draw(st.lists(u32, min_size=1, max_size=8).map(tuple))
    return SessionOpen(
        session_id=draw(st.text(min_size=1, max_size=12)),
        lease_epoch=draw(u64),
        router_id=draw(names),
        tokens=ids,
        prompt_len=draw(st.integers(1, len(ids))),
        sampling=draw(samplings),
        choice=draw(u32),
        tenant=draw(names),
        request_id=draw(names),
        drafter=draw(names),
        numerics_class=draw(names),
        trace=draw(traces),
    )


floats32 = st.floats(0, 1, width=32)  # the wire's precision


@st.composite
def distributions(draw: st.DrawFn, token: int) -> SparseDistribution:
    """Of some tokens, the given one among them, all equally likely."""
    ids = tuple(draw(st.sets(u32, max_size=3)) | {token})
    share = float(np.float32(1 / len(ids)))
    return SparseDistribution(ids, (share,) * len(ids))


@st.composite
def logprobs(draw: st.DrawFn) -> TokenLogprobs:
    top = draw(st.lists(st.tuples(u32, floats32), max_size=3))
    return TokenLogprobs(
        -draw(floats32), draw(u32), tuple(token for token, _ in top), tuple(-value for _, value in top)
    )


@st.composite
def proposals(draw: st.DrawFn) -> Proposal:
    ids = draw(tokens)
    sure = draw(st.booleans())
    confidence = draw(st.lists(floats32, min_size=len(ids), max_size=len(ids)).map(tuple)) if sure else ()
    drawn_from = tuple(draw(distributions(token)) for token in ids) if draw(st.booleans()) else ()
    return Proposal(ids, draw(names), draw(names), confidence, drawn_from)


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    ids = draw(tokens)
    sources = (TokenSource.ACCEPTED,) * (len(ids) - 1) + ((draw(st.sampled_from(TokenSource)),) if ids else ())
    verified = draw(u32)
    return Verdict(
        ids,
        sources,
        verified,
        draw(st.integers(0, verified)),
        draw(names),
        draw(st.none() | finishes),
        draw(names),
        tuple(draw(logprobs()) for _ in ids) if draw(st.booleans()) else (),
        tuple(draw(st.lists(logprobs(), max_size=3))),
        draw(st.booleans()),
        draw(names),
    )


draft_tasks = st.builds(DraftTask, fences, tokens, u32, u32, u64, u64, u64, traces)
draft_results = st.builds(DraftResult, fences, proposals() | resyncs, timings)
# Confidences stay with the router, which decided with them what to send.
sent = proposals().map(lambda proposal: replace(proposal, confidence=()))
feeds = st.builds(Feed, st.text(min_size=1), names, u64, names)
wants = st.builds(FeatureWant, names, u64, u32, st.booleans())
verify_tasks = st.builds(VerifyTask, fences, sent, traces, st.none() | feeds, st.booleans())


@st.composite
def chunks(draw: st.DrawFn) -> FeatureChunk:
    data = draw(st.binary(max_size=40))
    count = draw(st.integers(1, 2**32 - 1)) if data else 0
    name = draw(st.text(min_size=1))
    return FeatureChunk(name, draw(u64), draw(names), draw(names), draw(u32), count, data, draw(names))


verify_results = st.builds(VerifyResult, fences, verdicts() | resyncs, timings)

PAIRS: list[Any] = [
    pytest.param(samplings, wire_sampling.to_sampling, wire_sampling.from_sampling, id="sampling"),
    pytest.param(fences, wire.to_fence, wire.from_fence, id="fence"),
    pytest.param(openings(), wire.to_open, wire.from_open, id="open"),
    pytest.param(timings, wire.to_timing, wire.from_timing, id="timing"),
    pytest.param(resyncs, wire.to_resync, wire.from_resync, id="resync"),
    pytest.param(draft_tasks, wire.to_draft_task, wire.from_draft_task, id="draft_task"),
    pytest.param(draft_results, wire.to_draft_result, wire.from_draft_result, id="draft_result"),
    pytest.param(verify_tasks, wire.to_verify_task, wire.from_verify_task, id="verify_task"),
    pytest.param(finishes, wire.to_finish, wire.from_finish, id="finish"),
    pytest.param(verify_results, wire.to_verify_result, wire.from_verify_result, id="verify_result"),
    pytest.param(steps, wire.to_step, wire.from_step, id="step"),
    pytest.param(feeds, wire_features.to_feed, wire_features.from_feed, id="feed"),
    pytest.param(chunks(), wire_features.to_chunk, wire_features.from_chunk, id="chunk"),
    pytest.param(wants, wire_features.to_want, wire_features.from_want, id="want"),
]


@pytest.mark.parametrize(("nouns", "to", "back"), PAIRS)
def test_a_noun_survives_the_wire(
    nouns: st.SearchStrategy[Noun], to: Callable[[Noun], Message], back: Callable[[Any], Noun]
) -> None:
    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(nouns)
    def survives(noun: Noun) -> None:
        message = to(noun)
        received = type(message).FromString(message.SerializeToString())
        assert back(received) == noun

    survives()


def test_every_pair_is_tested() -> None:
    known = {**vars(wire), **vars(wire_features)}
    pairs = {name[3:] for name in known if name.startswith("to_")}
    assert pairs == {name[5:] for name in known if name.startswith("from_")}
    inside = {"trace", "grammar", "distributions", "logprobs"}  # tested as parts of the others
    assert pairs - inside == {str(pair.id) for pair in PAIRS}


@given(st.builds(Trace, st.text(min_size=1), names))
def test_a_trace_survives_the_wire(trace: Trace) -> None:
    message = wire.to_trace(trace)
    assert message is not None
    assert wire.from_trace(common.TraceContext.FromString(message.SerializeToString())) == trace


def test_no_trace_is_no_message() -> None:
    assert wire.to_trace(NO_TRACE) is None
    assert wire.from_trace(common.TraceContext()) == NO_TRACE
    assert wire.to_trace(Trace("", "alone=1")) is None


def test_unset_sampling_fields_keep_their_defaults() -> None:
    assert wire_sampling.from_sampling(common.SamplingOptions()) == SamplingParams()
    assert wire_sampling.from_sampling(common.SamplingOptions(temperature=0)).greedy


FENCE = common.Fence(session_id="s", prefix_digest=b"12345678")


def verdict(**fields: Any) -> target.VerifyResult:
    return target.VerifyResult(fence=FENCE, verdict=target.Verdict(**fields))


@pytest.mark.parametrize(
    ("back", "message", "field"),
    [
        (wire.from_fence, common.Fence(prefix_digest=b"12345678"), "fence.session_id"),
        (wire.from_fence, common.Fence(session_id="s", prefix_digest=b"short"), "fence.prefix_digest"),
        (wire.from_open, common.SessionOpen(tokens=[1], prompt_len=1), "session_id"),
        (wire.from_open, common.SessionOpen(session_id="s", tokens=[1]), "prompt_len"),
        (wire.from_open, common.SessionOpen(session_id="s", tokens=[1], prompt_len=2), "prompt_len"),
        (wire.from_resync, common.Resync(), "resync.reason"),
        (wire.from_resync, common.Resync(reason=99), "resync.reason"),  # type: ignore[arg-type]
        (wire.from_finish, common.Finish(), "finish.reason"),
        (wire_sampling.from_sampling, common.SamplingOptions(verification_mode=99), "verification_mode"),  # type: ignore[arg-type]
        (wire_sampling.from_sampling, common.SamplingOptions(temperature=float("nan")), "temperature"),
        (wire.from_draft_result, draft.DraftResult(fence=FENCE), "outcome"),
        (
            wire.from_draft_result,
            draft.DraftResult(fence=FENCE, proposal=draft.DraftProposal(tokens=[1, 2], confidence=[0.5])),
            "proposal.confidence",
        ),
        (wire.from_verify_result, target.VerifyResult(fence=FENCE), "outcome"),
        (wire.from_verify_result, verdict(tokens=[1, 2], sources=[1]), "verdict.sources"),
        (wire.from_verify_result, verdict(tokens=[1], sources=[0]), "verdict.sources"),
        (wire.from_verify_result, verdict(tokens=[1, 2], sources=[2, 1]), "verdict.sources"),
        (wire.from_verify_result, verdict(verify_len=1, accepted=2), "verdict.accepted"),
        (wire.from_draft_task, draft.DraftTask(), "fence.session_id"),
        (wire.from_verify_task, target.VerifyTask(), "fence.session_id"),
        (wire_features.from_chunk, draft.FeatureChunk(), "session_id"),
        (wire_features.from_chunk, draft.FeatureChunk(session_id="s", count=1), "data"),
        (wire_features.from_chunk, draft.FeatureChunk(session_id="s", data=b"12"), "data"),
    ],
)
def test_a_message_that_breaks_an_invariant_is_refused_by_field(
    back: Callable[[Any], Any], message: Message, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        back(message)
    assert caught.value.field == field


def test_a_mode_left_open_is_agreement() -> None:
    assert wire_sampling.from_sampling(common.SamplingOptions()).verification_mode is VerificationMode.AGREEMENT
    rejection = common.SamplingOptions(verification_mode=common.VERIFICATION_MODE_REJECTION)
    assert wire_sampling.from_sampling(rejection).verification_mode is VerificationMode.REJECTION
