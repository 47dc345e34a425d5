"""What the tests of the round machine share."""

from __future__ import annotations

from dataclasses import replace

from paceline.speculation.actions import (
    Action,
    AskDraft,
    Commit,
    Phase,
    SessionSpec,
)
from paceline.speculation.leases import Side
from paceline.speculation.messages import (
    NO_TRACE,
    DraftTask,
    Finish,
    SessionOpen,
    Timing,
    TokenSource,
    Trace,
    Verdict,
    VerifyResult,
    VerifyTask,
)
from paceline.speculation.params import SamplingParams, SpeculationMode, SpeculationParams
from paceline.speculation.rounds import Session

DEADLINE = 0.1


T, A, C, B = TokenSource.TARGET_ONLY, TokenSource.ACCEPTED, TokenSource.CORRECTED, TokenSource.BONUS


def make(mode: SpeculationMode = SpeculationMode.FIXED, k: int | None = 3, **fields: object) -> Session:
    spec = SessionSpec("s", (1, 2, 3), SamplingParams(max_tokens=100), SpeculationParams(mode, k))
    return Session(replace(spec, **fields), draft_deadline_s=DEADLINE, verify_deadline_s=1.0)  # type: ignore[arg-type]


def open_on(session: Session, side: Side, worker: str, now: float = 0.0) -> SessionOpen:
    opening = session.open(side, worker, now + 1, router_id="r", trace=NO_TRACE, drafter="ngram", numerics="class")
    assert session.opened(side, opening.lease_epoch, f"{worker}#1")
    return opening


def leased(mode: SpeculationMode = SpeculationMode.FIXED, k: int | None = 3, **fields: object) -> Session:
    session = make(mode, k, **fields)
    open_on(session, Side.TARGET, "t")
    open_on(session, Side.DRAFT, "d")
    return session


def begin(session: Session, now: float = 0.0, *, wait: bool = True) -> list[Action]:
    k = session.draft_tokens(now, default_k=4, limit=32)
    return session.begin(now, k, lambda round_id: Trace(f"round-{round_id}"), wait=wait)


def phase(session: Session) -> Phase:
    return session.phase


def asked(actions: list[Action]) -> DraftTask:
    (action,) = actions
    assert isinstance(action, AskDraft)
    return action.task


def verdict(task: VerifyTask, *tokens: int, finish: Finish | None = None, timing: Timing | None = None) -> VerifyResult:
    drafted = task.proposal.tokens
    accepted = sum(1 for drafted_token, token in zip(drafted, tokens, strict=False) if drafted_token == token)
    last = T if not drafted else B if accepted == len(drafted) else C
    sources = (A,) * accepted + (last,) * (len(tokens) - accepted)
    outcome = Verdict(tokens, sources, len(drafted), accepted, finish=finish, verifier_model_id="m")
    return VerifyResult(task.fence, outcome, timing or Timing())


def commit_of(actions: list[Action]) -> Commit:
    assert isinstance(actions[0], Commit)
    return actions[0]
