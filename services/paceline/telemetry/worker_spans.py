"""The workers' spans: ``paceline.draft`` and ``paceline.verify`` below the round's span, and ``paceline.step``.

Rounds that are not traced (no trace context, or one that was not sampled) cost one look at it.
"""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.util.types import AnyValue

from paceline.telemetry import names
from paceline.telemetry.provider import MAX_LINKS, MAX_ROUND_TOKENS, Tracing, extract, sampled, text
from paceline.telemetry.shapes import DraftPart, DraftRun, StepPart, StepRun


class DraftSpans:
    """``draft.spans.DraftSpans`` as OpenTelemetry spans."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def draft_run(self, span: DraftRun) -> None:
        """Record what one run of a drafter did for each session."""
        if not self._tracing.enabled:
            return
        for part in span.drafts:
            context = extract(part.trace)
            if sampled(context):
                self._draft(span, part, context)

    def _draft(self, run: DraftRun, part: DraftPart, context: Context) -> None:
        attributes: dict[str, AnyValue] = {
            names.SESSION_ID: text(part.session_id),
            names.ROUND_ID: part.round_id,
            names.DRAFTER: text(run.drafter),
            names.MODEL_ID: text(run.model_id),
            names.DRAFT_ASKED: part.asked,
            names.DRAFTED: part.drafted,
            names.DRAFT_SESSIONS: len(run.drafts),
        }
        span = self._tracing.tracer.start_span(
            names.DRAFT, context, SpanKind.SERVER, attributes, start_time=run.start_ns
        )
        _fail(span, run.error)
        span.end(run.end_ns)


class TargetSpans:
    """``target.spans.Spans`` as OpenTelemetry spans. Step and verify spans link to each other."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def verify_step(self, span: StepRun) -> None:
        """Record a step and the traced rounds in it."""
        if not self._tracing.enabled:
            return
        traced = [(part, context) for part in span.rounds if sampled(context := extract(part.trace))]
        if not traced:
            return
        step = self._start_step(span, len(traced))
        link = Link(step.get_span_context())
        for number, (part, context) in enumerate(traced):
            rider = self._verify(span, part, context, link)
            if number < MAX_LINKS:
                step.add_link(rider)
        _fail(step, span.error)
        step.end(span.end_ns)

    def _start_step(self, run: StepRun, traced: int) -> Span:
        attributes: dict[str, AnyValue] = {
            names.MODEL_ID: text(run.model_id),
            names.STEP_ID: run.step.step_id,
            names.STEP_SESSIONS: run.step.sessions,
            names.STEP_TRACED: traced,
            names.STEP_ROWS: run.step.tokens,
            names.STEP_DURATION_US: run.step.duration_us,
        }
        # An empty context, not none: the step serves many traces and belongs to no current one.
        return self._tracing.tracer.start_span(names.STEP, Context(), attributes=attributes, start_time=run.start_ns)

    def _verify(self, run: StepRun, part: StepPart, context: Context, link: Link) -> SpanContext:
        assert len(part.tokens) <= MAX_ROUND_TOKENS, len(part.tokens)
        attributes: dict[str, AnyValue] = {
            names.SESSION_ID: text(part.session_id),
            names.REQUEST_ID: text(part.request_id),
            names.TENANT: text(part.tenant),
            names.ROUND_ID: part.round_id,
            names.MODEL_ID: text(run.model_id),
            names.STEP_ID: run.step.step_id,
            names.VERIFY_ROWS: part.rows,
            names.VERIFY_REUSED: part.reused,
            names.VERIFIED: part.verify_len,
            names.ACCEPTED: part.accepted,
            names.COMMITTED_IDS: part.tokens,
        }
        span = self._tracing.tracer.start_span(
            names.VERIFY, context, SpanKind.SERVER, attributes, links=(link,), start_time=run.start_ns
        )
        _fail(span, run.error)
        span.end(run.end_ns)
        return span.get_span_context()


def _fail(span: Span, error: str) -> None:
    if error:
        span.set_status(Status(StatusCode.ERROR, text(error)))
