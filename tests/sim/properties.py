"""What must hold of every simulated run, whatever went wrong in it."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.router.requests import Completed, Started
from paceline.speculation.messages import SessionOpen, TokenSource

from tests.sim.cluster import Cluster
from tests.sim.scenario import Outcome
from tests.sim.workers import plain


def check(cluster: Cluster, outcomes: Sequence[Outcome]) -> None:
    """Raises AssertionError naming the session and what is wrong."""
    for outcome in outcomes:
        if outcome.refused:
            continue
        name = f"{outcome.spec.session_id}: "
        assert outcome.error is None, name + f"failed with {outcome.error!r}"
        _check_tokens(outcome, name)
        if not outcome.cancelled:
            _check_whole(outcome, name)
    assert not cluster.dispatcher.answers, "answers are left in the dispatcher"
    assert all(len(cohorts) == 0 for cohorts in cluster.dispatcher.cohorts.values()), "sessions are left in cohorts"


def _check_tokens(outcome: Outcome, name: str) -> None:
    """What was delivered is the beginning of the target's own answer, without gap or repetition."""
    spec = outcome.spec
    opening = SessionOpen(spec.session_id, 1, "plain", spec.prompt, len(spec.prompt), spec.sampling)
    tokens, text = plain(opening)
    delivered = outcome.tokens
    assert delivered == tokens[: len(delivered)], name + f"expected {tokens}, got {delivered}"
    assert text.startswith(outcome.text), name + f"expected {text!r}, got {outcome.text!r}"
    index = 0
    for commit in outcome.commits:
        assert commit.index == index, name + f"round {commit.round_id} starts at {commit.index}, expected {index}"
        assert len(commit.sources) == len(commit.tokens), name + "each token has one source"
        accepted = commit.sources.count(TokenSource.ACCEPTED)
        assert accepted <= commit.accepted <= commit.verified <= commit.drafted, name + f"round {commit}"
        index += len(commit.tokens)
    if not outcome.cancelled:
        assert (delivered, outcome.text) == (tokens, text), name + "the answer is not whole"


def _check_whole(outcome: Outcome, name: str) -> None:
    first, last = outcome.events[0], outcome.events[-1]
    assert isinstance(first, Started), name + f"begins with {first}"
    assert isinstance(last, Completed), name + f"ends with {last}"
    assert last.completion_tokens == len(outcome.tokens) == last.stats.committed, name + f"{last}"
    epochs = [commit.lease_epoch for commit in outcome.commits]
    rounds = [commit.round_id for commit in outcome.commits]
    assert epochs == sorted(epochs), name + f"lease epochs {epochs}"
    assert rounds == sorted(set(rounds)), name + f"round ids {rounds}"
