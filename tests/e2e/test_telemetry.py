"""One request through real processes, and what their collector gets: one trace, every token in it."""

from __future__ import annotations

from collections import Counter

import pytest
from paceline.telemetry import names
from paceline_client import AsyncClient, Generation

from tests.e2e.answers import drafted_by, options_of
from tests.e2e.collector import Collecting
from tests.e2e.hosting import Hosted, on_failure
from tests.unit.telemetry_collector import Received

pytestmark = pytest.mark.e2e

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SENT_S = 20.0


async def test_a_request_is_one_trace_that_holds_every_token(fake_cluster: Hosted, collecting: Collecting) -> None:
    async with on_failure(fake_cluster.tails), AsyncClient(fake_cluster.address) as client:
        options = options_of("sampled", drafted_by("model"), 40)
        options |= {"traceparent": f"00-{TRACE_ID}-{CALLER}-01", "request_id": "the-traced-one"}
        answer = await client.generate("In a line", **options)

    metrics = answer.speculation
    wanted = {
        names.GENERATE: 1,
        names.ROUND: metrics.rounds,
        names.VERIFY: metrics.rounds,
        names.DRAFT: metrics.verify_rounds,
    }

    def complete() -> bool:
        came = Counter(span.name for span in collecting.trace(TRACE_ID))
        return all(came[name] >= count for name, count in wanted.items())

    await collecting.until(complete, SENT_S, "the spans of the request and all its rounds")
    spans = collecting.trace(TRACE_ID)
    request = the_request(spans, answer)
    rounds = rounds_below(spans, request, answer)
    workers_below(spans, rounds, answer)
    steps = collecting.linked_to({span.span.span_id for span in spans if span.name == names.VERIFY})
    assert {span.name for span in steps} == {names.STEP}


def the_request(spans: list[Received], answer: Generation) -> Received:
    """paceline.generate, below the caller's span."""
    (request,) = (span for span in spans if span.name == names.GENERATE)
    assert request.span.parent_span_id.hex() == CALLER
    assert request.resource[names.SERVICE_NAME] == "paceline-router"
    assert request.attributes[names.REQUEST_ID] == answer.started.request_id == "the-traced-one"
    assert request.attributes[names.USAGE_INPUT_TOKENS] == answer.usage.prompt_tokens
    assert request.attributes[names.USAGE_OUTPUT_TOKENS] == answer.usage.completion_tokens == 40
    assert request.attributes[names.ROUNDS] == answer.speculation.rounds
    assert request.attributes[names.ACCEPTED] == answer.speculation.accepted_tokens
    return request


def rounds_below(spans: list[Received], request: Received, answer: Generation) -> list[Received]:
    """paceline.round, whose arrays make up the answer token by token."""
    rounds = sorted(
        (span for span in spans if span.name == names.ROUND), key=lambda span: span.attributes[names.ROUND_ID]
    )
    assert {span.span.parent_span_id for span in rounds} == {request.span.span_id}
    joined = {
        key: [value for span in rounds for value in span.attributes[key]]
        for key in (
            names.COMMITTED_IDS,
            names.COMMITTED_POSITIONS,
            names.COMMITTED_SOURCES,
            names.COMMITTED_MODEL_IDS,
            names.COMMITTED_VERIFIER_IDS,
        )
    }
    tokens = answer.tokens
    assert joined[names.COMMITTED_IDS] == list(answer.token_ids)
    assert joined[names.COMMITTED_POSITIONS] == list(range(40))
    assert joined[names.COMMITTED_SOURCES] == [token.source.value for token in tokens]
    assert joined[names.COMMITTED_VERIFIER_IDS] == [token.verifier_model_id for token in tokens]
    proposers = [token.proposer_model_id or token.verifier_model_id for token in tokens]
    assert joined[names.COMMITTED_MODEL_IDS] == proposers
    assert len(set(proposers)) == 2, "both the draft model and the target wrote"
    return rounds


def workers_below(spans: list[Received], rounds: list[Received], answer: Generation) -> None:
    """paceline.draft and paceline.verify, each below its round, from another process."""
    ids = {span.span.span_id for span in rounds}
    drafts = [span for span in spans if span.name == names.DRAFT]
    verifies = [span for span in spans if span.name == names.VERIFY]
    assert {span.resource[names.SERVICE_NAME] for span in drafts} == {"paceline-draft"}
    assert {span.resource[names.SERVICE_NAME] for span in verifies} == {"paceline-target"}
    assert {span.span.parent_span_id for span in drafts} <= ids
    assert {span.span.parent_span_id for span in verifies} == ids
    assert len({span.span.parent_span_id for span in drafts}) >= answer.speculation.verify_rounds
