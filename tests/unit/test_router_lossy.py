"""What the router tells of relaxed acceptance: a round's word becomes the answer's, on every way out."""

from __future__ import annotations

import pytest
from paceline.router.http_metrics import Models, record
from paceline.router.ingress_wire import to_response
from paceline.router.requests import Committed, Completed, Started
from paceline.speculation.messages import Finish, FinishReason, RoundStats, TokenSource, Verdict

STARTED = Started("r", "s", "m", "f", "c", (1,), 7, 1)


@pytest.mark.parametrize("rounds", [[False, True, False], [False, False]])
def test_an_answer_is_lossy_if_one_of_its_rounds_was(rounds: list[bool]) -> None:
    stats = RoundStats()
    for index, lossy in enumerate(rounds):
        stats.add(Verdict((5,), (TokenSource.ACCEPTED,), 1, 1, lossy=lossy), drafted=1, missed=False)
        event = Committed(index, (5,), (TokenSource.ACCEPTED,), "", "d", "m", "ngram", index, 1, 1, 1, 1, lossy=lossy)
        assert to_response(event).tokens.lossy == lossy
    completed = Completed(Finish(FinishReason.LENGTH), 1, len(rounds), stats)
    assert to_response(completed).completed.lossy == any(rounds)
    assert record(STARTED, completed, Models())["lossy"] == any(rounds)
