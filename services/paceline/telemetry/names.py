"""Every span, attribute and metric name, and what it means. ``gen_ai.*``, ``service.*`` and ``error.*`` are
conventions of OpenTelemetry (GenAI: status Development); ``paceline.*`` is ours.

A trace of one answer::

    paceline.generate                     router: the request
      paceline.round                      router: draft → verify → commit
        paceline.draft                    draft worker
        paceline.verify ──link──┐         target: the round's part in one step
    paceline.step ◀─────────────┘         target: one forward pass for all sessions; a trace of its own, linked back
"""

from __future__ import annotations

# Spans
GENERATE = "paceline.generate"
"""One request, from its arrival to its last token."""
ROUND = "paceline.round"
"""One round of one session; the per-token arrays are here."""
DRAFT = "paceline.draft"
"""One session's part in one run of a drafter."""
VERIFY = "paceline.verify"
"""One session's part in one step of a target. A session that is catching up rides in several steps per round."""
STEP = "paceline.step"
"""One forward pass of a target. Recorded only if a round in it is traced."""

# Resource
SERVICE_NAME = "service.name"
"""paceline-router, paceline-draft or paceline-target."""
SERVICE_INSTANCE_ID = "service.instance.id"
"""The process's incarnation."""
SERVICE_VERSION = "service.version"
"""Version of the paceline distribution."""

# GenAI conventions, on paceline.generate
OPERATION_NAME = "gen_ai.operation.name"
"""`chat` if messages came, else `text_completion`."""
PROVIDER_NAME = "gen_ai.provider.name"
"""Always `paceline`."""
REQUEST_MODEL = "gen_ai.request.model"
"""The model as the caller named it."""
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
"""As the caller gave it, like the other request options; missing if the caller left it open."""
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_TOP_K = "gen_ai.request.top_k"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_SEED = "gen_ai.request.seed"
"""Missing also if it does not fit the convention's signed 64 bits."""
RESPONSE_MODEL = "gen_ai.response.model"
"""The target model."""
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
"""`stop` or `length`, one per choice."""
USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
"""Prompt tokens."""
USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
"""Committed tokens."""
ERROR_TYPE = "error.type"
"""Class of the error that ended the span; the span's status has its text."""

# Who and where
REQUEST_ID = "paceline.request_id"
"""The id the caller can ask about."""
TENANT = "paceline.tenant"
"""The authenticated tenant."""
SESSION_ID = "paceline.session_id"
"""The sequence being generated."""

# Totals of an answer, on paceline.generate
ROUNDS = "paceline.rounds"
"""Rounds whose verdict arrived."""
MISSED_DRAFTS = "paceline.missed_drafts"
"""Rounds that asked for a draft and went without."""
TAU = "paceline.tau"
"""Accepted length τ: committed tokens per round over rounds with verify length ≥ 1; missing without any."""

# Rounds; drafted, verified and accepted are also on paceline.generate, as totals
ROUND_ID = "paceline.round.id"
"""Grows each round within a lease."""
LEASE_EPOCH = "paceline.lease.epoch"
"""Grows each time the session is opened."""
DRAFTED = "paceline.drafted"
"""Draft tokens proposed."""
VERIFIED = "paceline.verified"
"""Verify length: draft tokens verified."""
ACCEPTED = "paceline.accepted"
"""Draft tokens the target agreed with."""
LOSSY = "paceline.lossy"
"""Relaxed acceptance committed a draft token that is not the target's own sample."""
DRAFTER = "paceline.drafter"
"""What proposed the draft tokens."""
MISSED_DRAFT = "paceline.missed_draft"
"""A draft was asked for and did not come in time."""
DRAFT_WAIT_US = "paceline.round.draft_us"
"""Microseconds the router waited for the draft."""
VERIFY_WAIT_US = "paceline.round.verify_us"
"""Microseconds the router waited for the verdict."""
NETWORK_US = "paceline.round.network_us"
"""Microseconds of both round trips that the workers do not account for."""
DRAFT_WORKER = "paceline.draft.worker"
"""Address of the draft worker."""
VERIFIER = "paceline.verifier"
"""Address of the target."""

# Parallel arrays over a round's committed tokens, on paceline.round (ids also on paceline.verify)
COMMITTED_IDS = "paceline.token.ids"
COMMITTED_POSITIONS = "paceline.token.positions"
"""Index within the output, from 0."""
COMMITTED_SOURCES = "paceline.token.sources"
"""accepted, corrected, bonus or target_only."""
COMMITTED_MODEL_IDS = "paceline.token.model_ids"
"""The proposer of an accepted token, else the verifier."""
COMMITTED_VERIFIER_IDS = "paceline.token.verifier_model_id"
"""The target that committed it."""

# Workers
MODEL_ID = "paceline.model_id"
"""The model that ran."""
DRAFT_ASKED = "paceline.draft.asked"
"""K, as the router asked."""
DRAFT_SESSIONS = "paceline.draft.sessions"
"""Sessions of the run."""
VERIFY_ROWS = "paceline.verify.rows"
"""Rows of the step that were this round's."""
VERIFY_REUSED = "paceline.verify.reused"
"""Tokens of the session that were in the KV state when it was opened: nobody had to compute them again."""
STEP_ID = "paceline.step.id"
STEP_SESSIONS = "paceline.step.sessions"
"""Sessions in the step."""
STEP_TRACED = "paceline.step.traced"
"""Sessions in the step whose rounds are traced; links cover the first 128 of them."""
STEP_ROWS = "paceline.step.rows"
"""Rows of the forward pass that carried a token."""
STEP_DURATION_US = "paceline.step.duration_us"
"""Microseconds."""

# Metrics: live capture, of a target that has one
CAPTURE_SAMPLES = "paceline.capture.samples"
"""Samples written to a target cache."""
CAPTURE_TOKENS = "paceline.capture.tokens"
"""Their tokens, prompts included."""
CAPTURE_BYTES = "paceline.capture.bytes"
"""Their bytes in shards."""
CAPTURE_DROPPED = "paceline.capture.dropped"
"""Sessions that were to be captured and are not, by reason."""
CAPTURE_MEMORY = "paceline.capture.memory"
"""Bytes of hidden states in memory, by stage; `target.capture.memory_bytes` bounds each."""
DROP_REASON = "paceline.capture.reason"
"""`memory`: too much waited to be written, or was under way. `disk`: it could not be written. `elsewhere`: part of it
had been computed before it was chosen. `empty`: it ended with nothing of the target's own that was final."""
CAPTURE_STAGE = "paceline.capture.stage"
"""`serving`: of sessions under way. `waiting`: of samples to be written."""
