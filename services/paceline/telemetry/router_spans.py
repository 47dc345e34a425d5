"""The router's spans: ``paceline.generate`` and, below it, one ``paceline.round`` per round with its tokens.

Which model a token comes from is told in parallel arrays on the round's span: of events the SDK keeps only the last 128
of a span. A round commits at most 65 tokens, so an array of model ids, 256 characters each, stays below 17 KB: half of
the 32,766 bytes at which Lucene, behind Jaeger's Elasticsearch, refuses a value. The whole span stays below 40 KB.

Measured on two shared cores: a traced round of 5 tokens takes 0.09 ms of the event loop and 0.16 ms of the exporter's
thread, a round that is not traced 0.1 µs. A busy router should sample.
"""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.util.types import AnyValue

from paceline.speculation.errors import PacelineError
from paceline.speculation.messages import Trace
from paceline.telemetry import names
from paceline.telemetry.provider import MAX_ROUND_TOKENS, Tracing, extract, inject, text
from paceline.telemetry.shapes import Completed, Request, RoundFacts, Sampling

INT64_LIMIT = 2**63  # of an OTLP integer; a larger one would lose the whole batch


class Handle:
    """One request's spans. Without a collector, or for a request that is not sampled, it only carries the context."""

    __slots__ = ("_trace", "committed", "context", "model", "recording", "round", "span")

    def __init__(self, trace: Trace, span: Span | None = None) -> None:
        self._trace = trace
        self.span = span
        self.recording = span is not None and span.is_recording()
        self.context = set_span_in_context(span, Context()) if span is not None and self.recording else None
        self.round: Span | None = None  # under way: a session has one round at a time
        self.committed = 0
        self.model = ""  # the verifier of the last round

    def trace(self) -> Trace:
        """The context that spans of workers hang under when no round is under way."""
        return self._trace


class RouterSpans:
    """``router.spans.RouterSpans`` as OpenTelemetry spans."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def start_request(self, request: Request) -> Handle:
        """A request arrives, perhaps with its caller's trace context."""
        if not self._tracing.enabled:
            return Handle(request.trace)
        span = self._tracing.tracer.start_span(names.GENERATE, extract(request.trace), kind=SpanKind.SERVER)
        if span.is_recording():
            span.set_attributes(_request_attributes(request))
        return Handle(inject(span), span)

    def place(self, handle: Handle, session_id: str, seed: int) -> None:
        """What the request left open is settled: its session, and the seed of its noise."""
        if handle.span is not None:
            handle.span.set_attribute(names.SESSION_ID, session_id)
            if seed < INT64_LIMIT:  # OTLP integers are signed
                handle.span.set_attribute(names.REQUEST_SEED, seed)

    def start_round(self, handle: Handle, round_id: int) -> Trace:
        """A round begins; the context goes to both workers."""
        if handle.context is None:
            return handle.trace()
        _abandon(handle)
        handle.round = self._tracing.tracer.start_span(
            names.ROUND, handle.context, kind=SpanKind.CLIENT, attributes={names.ROUND_ID: round_id}
        )
        return inject(handle.round)

    def end_round(self, handle: Handle, facts: RoundFacts) -> None:
        """A round's verdict arrived."""
        span, handle.round = handle.round, None
        if span is None:
            return
        handle.committed += len(facts.token_ids)
        span.set_attributes(_round_attributes(facts))
        span.end()
        handle.model = facts.verifier_ids[-1] if facts.verifier_ids else handle.model

    def end_request(self, handle: Handle, outcome: Completed | BaseException) -> None:
        """The answer is whole, or never will be."""
        if handle.span is None or not handle.recording:
            return
        _abandon(handle)
        if handle.model:
            handle.span.set_attribute(names.RESPONSE_MODEL, text(handle.model))
        if isinstance(outcome, BaseException):
            handle.span.set_attribute(names.USAGE_OUTPUT_TOKENS, handle.committed)
            _fail(handle.span, outcome)
        else:
            handle.span.set_attributes(_answer_attributes(outcome))
        handle.span.end()


def _request_attributes(request: Request) -> dict[str, AnyValue]:
    return {
        names.OPERATION_NAME: "text_completion" if request.messages is None else "chat",
        names.PROVIDER_NAME: "paceline",
        names.REQUEST_MODEL: text(request.model),
        **({names.REQUEST_ID: text(request.request_id)} if request.request_id else {}),
        names.TENANT: text(request.tenant),
        **_given(request.sampling),
    }


def _given(sampling: Sampling) -> dict[str, AnyValue]:
    """The options the caller gave, not yet validated."""
    options = {
        names.REQUEST_TEMPERATURE: sampling.temperature,
        names.REQUEST_TOP_P: sampling.top_p,
        names.REQUEST_TOP_K: sampling.top_k,
        names.REQUEST_MAX_TOKENS: sampling.max_tokens,
        names.REQUEST_SEED: sampling.seed,
    }
    return {name: value for name, value in options.items() if value is not None and abs(value) < INT64_LIMIT}


def _round_attributes(facts: RoundFacts) -> dict[str, AnyValue]:
    count = len(facts.token_ids)
    assert count <= MAX_ROUND_TOKENS, count
    arrays = (facts.positions, facts.sources, facts.model_ids, facts.verifier_ids)
    assert all(len(array) == count for array in arrays), arrays
    committed = facts.committed
    return {
        names.COMMITTED_IDS: facts.token_ids,
        names.COMMITTED_POSITIONS: facts.positions,
        names.COMMITTED_SOURCES: facts.sources,
        names.COMMITTED_MODEL_IDS: tuple(map(text, facts.model_ids)),
        names.COMMITTED_VERIFIER_IDS: tuple(map(text, facts.verifier_ids)),
        names.LEASE_EPOCH: committed.lease_epoch,
        names.DRAFTER: text(committed.drafter),
        names.DRAFTED: committed.drafted,
        names.VERIFIED: committed.verified,
        names.ACCEPTED: committed.accepted,
        names.LOSSY: committed.lossy,
        names.MISSED_DRAFT: facts.missed_draft,
        names.DRAFT_WAIT_US: facts.draft_us,
        names.VERIFY_WAIT_US: facts.verify_us,
        names.NETWORK_US: facts.network_us,
        names.DRAFT_WORKER: text(facts.draft_worker),
        names.VERIFIER: text(facts.verifier),
    }


def _answer_attributes(outcome: Completed) -> dict[str, AnyValue]:
    stats = outcome.stats
    attributes: dict[str, AnyValue] = {
        names.USAGE_INPUT_TOKENS: outcome.prompt_tokens,
        names.USAGE_OUTPUT_TOKENS: outcome.completion_tokens,
        names.RESPONSE_FINISH_REASONS: (outcome.finish.reason.name.lower(),),
        names.ROUNDS: stats.rounds,
        names.MISSED_DRAFTS: stats.missed_drafts,
        names.DRAFTED: stats.drafted,
        names.VERIFIED: stats.verified,
        names.ACCEPTED: stats.accepted,
        names.LOSSY: stats.lossy,
    }
    if stats.tau is not None:
        attributes[names.TAU] = stats.tau
    return attributes


def _abandon(handle: Handle) -> None:
    """End a round whose verdict never came, so that the worker spans below it keep their parent."""
    if handle.round is not None:
        handle.round.set_attribute(names.ERROR_TYPE, "lost")
        handle.round.set_status(Status(StatusCode.ERROR, "the round had no verdict"))
        handle.round.end()
        handle.round = None


def _fail(span: Span, error: BaseException) -> None:
    """Only our own errors are written for others to read; the text of any other may hold anything."""
    if not isinstance(error, Exception):  # cancellation
        kind, description = "cancelled", "ended before it was complete"
    else:
        kind, description = type(error).__name__, str(error) if isinstance(error, PacelineError) else ""
    span.set_attribute(names.ERROR_TYPE, kind)
    span.set_status(Status(StatusCode.ERROR, text(description)))
