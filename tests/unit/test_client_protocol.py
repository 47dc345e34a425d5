"""Answers checked message by message: what doesn't fit is refused, what repeats is trimmed. Both clients."""

from __future__ import annotations

import pytest
from paceline.v1 import common_pb2, generation_pb2
from paceline_client import FinishReason, ServerError, TokenLogprobs, TokenSource

from tests.unit.test_client_scripted import (
    ANSWER,
    Act,
    AnyClient,
    FakeRouter,
    Response,
    Server,
    completed,
    started,
    tokens_at,
    whole,
)

ACCEPTED = common_pb2.TOKEN_SOURCE_ACCEPTED
DIES = Act(tokens=4)
OTHER = Response(tokens=generation_pb2.Tokens(token_ids=[1, 2], sources=[ACCEPTED, ACCEPTED]))


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


ONE = tokens_at(0, [ACCEPTED, ACCEPTED])
UNEVEN = Response(tokens=generation_pb2.Tokens(token_ids=[1, 2], sources=["TOKEN_SOURCE_BONUS"]))


SHORT = Response(
    tokens=generation_pb2.Tokens(token_ids=[1, 2], sources=[ACCEPTED, ACCEPTED], logprobs=[common_pb2.TokenLogprobs()])
)


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ((ONE,), "Tokens came before Started"),
        ((Response(completed=generation_pb2.Completed()),), "Completed came before Started"),
        ((started(), started(seed=8)), "seed: expected 7 again, got 8"),
        ((started(), UNEVEN), "sources: expected 2, got 1"),
        ((started(), SHORT), "logprobs: expected 2, got 1"),
        ((started(), ONE, tokens_at(3, [ACCEPTED])), "index: expected 2, the tokens received so far, got 3"),
    ],
)
async def test_an_answer_that_breaks_the_protocol_is_refused(
    kind: str, responses: tuple[Response, ...], message: str
) -> None:
    async with Server(FakeRouter(Act(responses=responses))) as server, AnyClient(kind, server.address) as client:
        stream = client.stream()
        with pytest.raises(ServerError, match=message) as caught:
            await stream.result()
        with pytest.raises(ServerError, match=message):  # and stays refused
            await stream.result()
    assert caught.value.received is not None
    assert client.waits == []


async def test_a_move_within_a_stream_is_no_second_start(kind: str) -> None:
    moved = started(session_id="s-2", numerics_class="class-b", lease_epoch=4, class_changed=True)
    acts = (Act(responses=(started(), ONE, moved)), Act(numerics_class="class-b"))
    async with Server(FakeRouter(*acts)) as server, AnyClient(kind, server.address) as client:
        whole(answer := await client.generate())
    assert (answer.resumes, answer.class_changed, answer.started.session_id) == (1, True, "s-1")
    resume = server.router.requests[1].resume
    assert (resume.session_id, resume.numerics_class, resume.lease_epoch) == ("s-2", "class-b", 4)


async def test_an_answer_is_lossy_if_one_of_its_rounds_was(kind: str) -> None:
    lossy = Response(tokens=generation_pb2.Tokens(index=2, token_ids=[3], sources=[ACCEPTED], lossy=True))
    for rounds in ((ONE, lossy), (ONE,)):
        act = Act(responses=(started(), *rounds, completed([])))
        async with Server(FakeRouter(act)) as server, AnyClient(kind, server.address) as client:
            answer = await client.generate()
        assert answer.lossy == (len(rounds) == 2)


async def test_a_resume_after_the_last_token_only_brings_the_end(kind: str) -> None:
    nothing = Response(tokens=generation_pb2.Tokens(index=len(ANSWER), verifier_model_id="target-model"))
    done = Response(completed=generation_pb2.Completed())
    acts = (Act(tokens=len(ANSWER)), Act(responses=(started(), nothing, done)))
    async with Server(FakeRouter(*acts)) as server, AnyClient(kind, server.address) as client:
        stream = client.stream()
        chunks = [chunk async for chunk in stream]
        whole(await stream.result())
    assert all(chunk.tokens for chunk in chunks)


async def test_what_a_newer_server_adds_does_no_harm(kind: str) -> None:
    strange = generation_pb2.Tokens(index=0, token_ids=[5], text="x")
    strange.sources.append(77)  # type: ignore[arg-type]
    done = generation_pb2.Completed(finish=common_pb2.Finish(reason=77))  # type: ignore[arg-type]
    acts = Act(responses=(Response(), started(), Response(tokens=strange), Response(completed=done)), code=None)
    async with Server(FakeRouter(acts)) as server, AnyClient(kind, server.address) as client:
        answer = await client.generate()
    assert answer.tokens[0].source is TokenSource.UNKNOWN
    assert answer.finish.reason is FinishReason.UNKNOWN
    assert answer.speculation.acceptance_rate is None
    assert answer.speculation.accepted_length is None
    assert answer.speculation.committed_per_round is None


@pytest.mark.parametrize("repeat", [1, 3, 4])
async def test_repeated_tokens_are_trimmed(kind: str, repeat: int) -> None:
    # Rounds are 3, 1, 2 … tokens: repeating 4 sends a whole round again, 1 and 3 the same in part or in whole.
    async with Server(FakeRouter(DIES, Act(repeat=repeat))) as server, AnyClient(kind, server.address) as client:
        whole(await client.generate())


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (Act(skip=2), "index: expected 4, the tokens received so far, got 6"),
        (Act(repeat=2), "text: expected to go on"),  # token 2 is inside a round: its text can't be told apart
        (Act(responses=(started(seed=8),)), "seed: expected 7 again, got 8"),
        (
            Act(responses=(started(), OTHER)),
            "token_ids: expected .100, 101. again",
        ),
    ],
)
async def test_a_resume_that_does_not_fit_is_refused(kind: str, act: Act, message: str) -> None:
    async with Server(FakeRouter(DIES, act)) as server, AnyClient(kind, server.address) as client:
        with pytest.raises(ServerError, match=message) as caught:
            await client.generate()
    assert caught.value.received is not None
    assert caught.value.received.token_ids == tuple(ANSWER[:4])
    assert len(server.router.requests) == 2


def scored(index: int, count: int, prompt: int = 0) -> Response:
    """Tokens as the answer has them, each with a log probability of minus its index."""
    response = tokens_at(index, [ACCEPTED] * count)
    for place in range(index, index + count):
        response.tokens.logprobs.add(logprob=-place, rank=place, top_ids=[9, 8], top_logprobs=[-0.5, -1.0])
    for place in range(prompt):
        response.tokens.prompt_logprobs.add(logprob=-100 - place, rank=1)
    return response


async def test_log_probabilities_stay_with_their_tokens_through_a_lost_stream(kind: str) -> None:
    """A repeated round brings only what was missing, and the prompt's come once."""
    first, again = scored(0, 3, prompt=2), scored(0, 5, prompt=2)
    acts = (
        Act(responses=(started(), first)),
        Act(responses=(started(), again, completed([again.tokens]))),
    )
    async with Server(FakeRouter(*acts)) as server, AnyClient(kind, server.address) as client:
        answer = await client.stream(logprobs=2, prompt_logprobs=0).result()
    assert [token.logprobs and token.logprobs.logprob for token in answer.tokens] == [0, -1, -2, -3, -4]
    assert answer.tokens[4].logprobs == TokenLogprobs(-4, 4, (9, 8), (-0.5, -1.0))
    assert [each.logprob for each in answer.prompt_logprobs] == [-100, -101]
