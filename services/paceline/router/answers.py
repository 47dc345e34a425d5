"""One answer under way: its session's rounds, where it lives, and the events it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from paceline.router.pairing import TargetInfo
from paceline.router.requests import Committed, Completed, Request, Started, Waits
from paceline.router.spans import RoundFacts
from paceline.speculation.actions import Commit
from paceline.speculation.errors import PacelineError
from paceline.speculation.messages import Finish, TokenSource
from paceline.speculation.rounds import Session


@dataclass(slots=True)
class Answer:
    """Moments are in the dispatcher's clock, seconds."""

    request: Request
    session: Session
    model: TargetInfo  # of the verifier it is on, or would be
    numerics_class: str  # the class it is pinned to; empty until it has a verifier
    deadline: float
    span: Any
    drafter: str = ""  # wanted; empty for the draft worker's default
    started: bool = False
    homeless_since: float | None = None  # no verifier would take it since then
    target_retry_at: float = 0.0
    draft_retry_at: float = 0.0
    draft_failures: int = 0
    refused: set[str] = field(default_factory=set)  # verifiers that refused it since its last commit
    refusal: PacelineError | None = None
    draft_us: int = 0
    verify_us: int = 0
    network_us: int = 0
    router_us: float = 0.0

    @property
    def session_id(self) -> str:
        return self.session.spec.session_id

    def start(self, info: TargetInfo) -> Started | None:
        """A verifier took the session; the event to tell, if the client must know.

        The first time always. Later only when the answer had to move to another numerics class: then Started comes
        again, with ``class_changed``, and a resume must name its class.
        """
        changed = bool(self.numerics_class) and self.numerics_class != info.numerics_class
        told = self.started and not changed
        self.model, self.numerics_class, self.started = info, info.numerics_class, True
        self.homeless_since, self.refusal = None, None
        if told:
            return None
        spec = self.session.spec
        return Started(
            request_id=spec.request_id,
            session_id=spec.session_id,
            model=info.model_id,
            fingerprint=info.fingerprint,
            numerics_class=info.numerics_class,
            prompt_tokens=spec.prompt,
            seed=spec.sampling.seed,
            lease_epoch=self.session.leases.epoch,
            class_changed=changed,
        )

    def commit(self, commit: Commit) -> Committed:
        """Count a round; the event that tells of it."""
        self.draft_us += int(commit.draft_s * 1e6)
        self.verify_us += int(commit.verify_s * 1e6)
        self.network_us += commit.network_us
        self.refused.clear()
        verdict = commit.verdict
        return Committed(
            index=commit.index,
            tokens=verdict.tokens,
            sources=verdict.sources,
            text=verdict.text,
            proposer_model_id=commit.proposer_model_id,
            verifier_model_id=verdict.verifier_model_id,
            drafter=commit.drafter,
            round_id=commit.round_id,
            drafted=commit.drafted,
            verified=verdict.verify_len,
            accepted=verdict.accepted,
            lease_epoch=commit.lease_epoch,
            logprobs=verdict.logprobs,
            prompt_logprobs=verdict.prompt_logprobs,
            lossy=verdict.lossy,
            confidence=commit.confidence,
        )

    def complete(self, finish: Finish) -> Completed:
        """The last event."""
        return Completed(
            finish=finish,
            prompt_tokens=len(self.session.spec.prompt),
            completion_tokens=self.session.output_len,
            stats=self.session.stats,
            waits=Waits(self.draft_us, self.verify_us, int(self.router_us), self.network_us),
        )


def round_facts(committed: Committed, commit: Commit, draft_worker: str, verifier: str) -> RoundFacts:
    """What telemetry is told of a round."""
    count = len(committed.tokens)
    accepted = [source is TokenSource.ACCEPTED for source in committed.sources]
    proposer, model = committed.proposer_model_id, committed.verifier_model_id
    return RoundFacts(
        committed=committed,
        token_ids=committed.tokens,
        model_ids=tuple(proposer if drafted else model for drafted in accepted),
        verifier_ids=(model,) * count,
        sources=tuple(source.name.lower() for source in committed.sources),
        positions=tuple(range(committed.index, committed.index + count)),
        missed_draft=commit.missed,
        draft_us=int(commit.draft_s * 1e6),
        verify_us=int(commit.verify_s * 1e6),
        network_us=commit.network_us,
        draft_worker=draft_worker,
        verifier=verifier,
    )
