"""What speculation did for one answer: vLLM's record, which benchmarks read, and our own, which says more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline.router.requests import Committed, Completed, Started
from paceline.speculation.messages import RoundStats, TokenSource


@dataclass(slots=True)
class Models:
    """Who wrote an answer, in order of appearance."""

    verifiers: list[str] = field(default_factory=list)
    proposers: list[str] = field(default_factory=list)
    drafters: list[str] = field(default_factory=list)

    def add(self, event: Committed) -> None:
        """Note who committed a round, and whose drafts it accepted."""
        _note(self.verifiers, event.verifier_model_id)
        if event.accepted:
            _note(self.proposers, event.proposer_model_id)
        if event.drafted:
            _note(self.drafters, event.drafter)


def _note(seen: list[str], name: str) -> None:
    if name and name not in seen:
        seen.append(name)


def total(stats: Sequence[RoundStats]) -> RoundStats:
    """What several choices took together."""
    out = RoundStats()
    for each in stats:
        out.rounds += each.rounds
        out.drafted += each.drafted
        out.missed_drafts += each.missed_drafts
        out.per_round_verified += each.per_round_verified
        out.per_round_accepted += each.per_round_accepted
        out.speculative_commits += each.speculative_commits
        for source, count in each.by_source.items():
            out.by_source[source] += count
    return out


def speculative_decoding(stats: RoundStats) -> dict[str, Any]:
    """vLLM's ``metrics.speculative_decoding``, over the rounds that carried draft tokens to the target.

    Drafted means verified here, as in vLLM, where every draft token is: the lists and totals must agree. What was
    drafted and never verified is in ``record``.
    """
    verified, accepted = stats.per_round_verified, stats.per_round_accepted
    steps = len(verified)
    longest = max(verified, default=0)
    return {
        "num_spec_steps": steps,
        "num_spec_tokens": longest,
        "num_draft_tokens": stats.verified,
        "num_accepted_draft_tokens": stats.accepted,
        "mean_acceptance_length": 1 + (stats.accepted / steps if steps else 0.0),
        "draft_acceptance_rate": stats.accepted / stats.verified if stats.verified else 0.0,
        "acceptance_histogram": _histogram(accepted, longest),
        "per_step_accepted": list(accepted),
        "per_step_drafted": list(verified),
    }


def _histogram(accepted: Sequence[int], longest: int) -> list[int]:
    counts = [0] * (longest + 1)
    for count in accepted:
        counts[count] += 1
    return counts


def record(started: Started, completed: Completed, models: Models) -> dict[str, Any]:
    """Our own record, in the words of DESIGN.md, section 2. Ratios without a denominator are null."""
    stats, waits, finish = completed.stats, completed.waits, completed.finish
    return {
        "request_id": started.request_id,
        "session_id": started.session_id,
        "seed": started.seed,
        "fingerprint": started.fingerprint,
        "numerics_class": started.numerics_class,
        "class_changed": started.class_changed,
        "finish": {
            "reason": finish.reason.name.lower(),
            "stop_token_id": finish.stop_token_id,
            "stop_string": finish.stop_string,
        },
        "models": {"verifiers": models.verifiers, "proposers": models.proposers, "drafters": models.drafters},
        "tokens": {source.name.lower(): stats.by_source[source] for source in TokenSource},
        "rounds": stats.rounds,
        "verify_rounds": len(stats.per_round_verified),
        "drafted": stats.drafted,
        "verified": stats.verified,
        "accepted": stats.accepted,
        "missed_drafts": stats.missed_drafts,
        "lossy": stats.lossy,
        "tau": stats.tau,
        "committed_per_round": stats.committed / stats.rounds if stats.rounds else None,
        "acceptance_over_drafted": stats.accepted / stats.drafted if stats.drafted else None,
        "acceptance_over_verified": stats.acceptance_rate,
        "waits_us": {
            "draft": waits.draft_us,
            "verify": waits.verify_us,
            "router": waits.router_us,
            "network": waits.network_us,
        },
    }
