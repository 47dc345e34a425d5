"""The fencing of DESIGN.md section 5: which rounds a session takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paceline.speculation.digest import PrefixDigest
from paceline.speculation.ledger import FRESH, Repeat, SessionLedger, unknown
from paceline.speculation.messages import Fence, Resync, ResyncReason, SessionOpen, TokenSource, Verdict
from paceline.speculation.params import SamplingParams

OPENING = SessionOpen("s", 7, "r", (1, 2, 3, 4), 3, SamplingParams())
VERDICT = Verdict((5, 6), (TokenSource.ACCEPTED, TokenSource.BONUS), 1, 1)


def fence(tokens: tuple[int, ...] = OPENING.tokens, *, round_id: int = 1, epoch: int = 7, of: str = "me") -> Fence:
    return Fence("s", of, epoch, round_id, len(tokens), PrefixDigest(tokens).value)


@pytest.fixture
def ledger() -> SessionLedger:
    return SessionLedger(OPENING)


@pytest.fixture
def after_round(ledger: SessionLedger) -> SessionLedger:
    ledger.commit(fence(round_id=4), VERDICT)
    return ledger


def test_a_round_that_continues_the_prefix_is_fresh(ledger: SessionLedger) -> None:
    assert ledger.admit(fence(), "me") is FRESH
    assert (ledger.committed, ledger.last_round_id) == (1, None)


def test_a_commit_extends_tokens_and_digest(after_round: SessionLedger) -> None:
    assert after_round.tokens == [1, 2, 3, 4, 5, 6]
    assert after_round.digest == PrefixDigest([1, 2, 3, 4, 5, 6]).value
    assert (after_round.committed, after_round.last_round_id) == (3, 4)
    assert after_round.admit(fence((1, 2, 3, 4, 5, 6), round_id=5), "me") is FRESH


def test_a_repeated_round_gets_the_same_answer(after_round: SessionLedger) -> None:
    assert after_round.admit(fence(round_id=4), "me") == Repeat(VERDICT)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (fence(of="another"), ResyncReason.OTHER_INCARNATION),
        (fence(epoch=6), ResyncReason.STALE_LEASE),
        (fence(round_id=3), ResyncReason.OLD_ROUND),
        (fence((1, 2, 3, 4, 5, 6), round_id=4), ResyncReason.OLD_ROUND),
        (fence(round_id=5), ResyncReason.PREFIX_MISMATCH),
        (replace(fence((1, 2, 3, 4, 5, 6), round_id=5), prefix_digest=b"x" * 8), ResyncReason.PREFIX_MISMATCH),
    ],
)
def test_what_does_not_fit_is_told_with_the_length_held(
    after_round: SessionLedger, wrong: Fence, reason: ResyncReason
) -> None:
    assert after_round.admit(wrong, "me") == Resync(reason, 6)


def test_a_lease_never_opened_here_is_unknown(ledger: SessionLedger) -> None:
    assert ledger.admit(fence(epoch=8), "me") == Resync(ResyncReason.UNKNOWN_SESSION, 0)


def test_a_session_never_opened_here_is_unknown() -> None:
    assert unknown(fence(), "me") == Resync(ResyncReason.UNKNOWN_SESSION, 0)
    assert unknown(fence(), "another") == Resync(ResyncReason.OTHER_INCARNATION, 0)


def test_committing_out_of_order_is_a_bug(after_round: SessionLedger) -> None:
    with pytest.raises(AssertionError):
        after_round.commit(fence(round_id=5), VERDICT)
    with pytest.raises(AssertionError):
        after_round.commit(fence((1, 2, 3, 4, 5, 6), round_id=4), VERDICT)
