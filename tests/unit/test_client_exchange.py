"""The resuming state by itself: whatever breaks, wherever, the answer comes out whole. No sockets, no time."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.v1 import generation_pb2
from paceline_client import Chunk, ConnectionLostError, Generation, RetryPolicy
from paceline_client._errors import TRUNCATED, Failure
from paceline_client._resume import Exchange

from tests.unit.test_client_scripted import ANSWER, Act, FakeRouter, whole

LOST = Failure(grpc.StatusCode.UNAVAILABLE, "gone")
FULL = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_after_s=1.0)

# None breaks before Started; a number after that many tokens of the stream.
breaks = st.lists(
    st.tuples(st.none() | st.integers(0, len(ANSWER)), st.sampled_from([LOST, FULL, TRUNCATED])), max_size=12
)


def play(script: Sequence[tuple[int | None, Failure]]) -> tuple[Generation, list[Chunk], list[float]]:
    """Run an answer through the breaks of a script, on a clock of its own."""
    policy = RetryPolicy(attempts=50, total_attempts=50, budget_s=1e6, retry_overloaded=True)
    request = generation_pb2.GenerateRequest(text="hello")
    exchange = Exchange(request, policy=policy, timeout_s=1e6, now=0.0, random=lambda: 0.5)
    router, now = FakeRouter(), 0.0
    chunks: list[Chunk] = []
    delays: list[float] = []
    acts = [(Act(tokens=count, start=count is not None), failure) for count, failure in script] + [(Act(), LOST)]
    for act, failure in acts:
        for response in router.play(exchange.request(), act):
            now += 0.25
            chunk = exchange.feed(response, now)
            if chunk is not None:
                chunks.append(chunk)
        if exchange.done:
            break
        delays.append(exchange.failed(failure, now))
        now += delays[-1]
    return exchange.generation(now), chunks, delays


@given(breaks)
def test_nothing_is_lost_or_repeated_whatever_breaks(script: list[tuple[int | None, Failure]]) -> None:
    answer, chunks, _ = play(script)
    whole(answer)
    assert [token for chunk in chunks for token in chunk.tokens] == list(answer.tokens)
    assert "".join(chunk.text for chunk in chunks) == answer.text
    sources = [token.source.value for token in answer.tokens]
    assert answer.speculation.accepted_tokens == sources.count("accepted")
    assert answer.speculation.rounds == len(chunks)


@given(breaks)
def test_the_same_breaks_give_the_same_course(script: list[tuple[int | None, Failure]]) -> None:
    assert play(script) == play(script)


def test_giving_up_leaves_what_came() -> None:
    exchange = Exchange(
        generation_pb2.GenerateRequest(text="hello"),
        policy=RetryPolicy(attempts=0),
        timeout_s=1.0,
        now=0.0,
        random=lambda: 0.0,
    )
    for response in FakeRouter().play(exchange.request(), Act(tokens=3)):
        exchange.feed(response, 0.1)
    with pytest.raises(ConnectionLostError) as caught:
        exchange.failed(LOST, 0.2)
    assert caught.value.received == exchange.received
    assert exchange.received.token_ids == tuple(ANSWER[:3])
