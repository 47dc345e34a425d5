"""A lost router: the answer goes on with no token lost or repeated, or fails with what had come. Both clients."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import grpc
import pytest
from paceline.v1 import common_pb2, generation_pb2
from paceline_client import (
    AuthenticationError,
    ConnectionLostError,
    RetryPolicy,
    ServerError,
    UnavailableError,
)

from tests.unit.test_client_scripted import (
    ANSWER,
    PROMPT,
    TEXT,
    Act,
    AnyClient,
    FakeRouter,
    Server,
    started,
    tokens_at,
    whole,
)

Code = grpc.StatusCode
ACCEPTED = common_pb2.TOKEN_SOURCE_ACCEPTED
DIES = Act(tokens=4)


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_waits(self, client: AnyClient) -> None:
        """Let time pass by what the client waits."""

        def wait() -> None:
            self.now += client.waits[-1]

        client.on_wait = wait


LOST = [
    (Code.UNAVAILABLE, "Socket closed"),
    (Code.ABORTED, "lease moved"),
    (Code.CANCELLED, "Client for request x disconnected."),
    (Code.INTERNAL, "Received RST_STREAM with error code 2"),
    (Code.INTERNAL, "upstream proxy failed"),
    (Code.INTERNAL, "read: Connection reset by peer"),
    (Code.INTERNAL, "The actor died unexpectedly before finishing this task."),
    (Code.INTERNAL, "The actor 0a1b is unavailable: the connection is gone. The task may have run."),
    (Code.UNKNOWN, "Stream removed"),
    (Code.UNKNOWN, ""),
    (None, "an end without Completed"),
]


@pytest.mark.parametrize(("code", "details"), LOST)
async def test_a_lost_stream_is_resumed(kind: str, code: grpc.StatusCode | None, details: str) -> None:
    async with (
        Server(FakeRouter(replace(DIES, code=code, details=details))) as server,
        AnyClient(kind, server.address) as client,
    ):
        whole(answer := await client.generate(max_tokens=50, seed=None))
    assert (answer.resumes, answer.class_changed) == (1, False)
    assert len(client.waits) == 1
    first, second = server.router.requests
    assert not first.HasField("resume")
    assert second.sampling == first.sampling  # max_tokens counts from the prompt, so it stays
    assert (second.request_id, second.model, second.WhichOneof("input")) == ("r-1", "demo", None)
    assert second.resume == generation_pb2.Resume(
        prompt_token_ids=PROMPT,
        seed=7,
        numerics_class="class-a",
        lease_epoch=1,
        session_id="s-1",
        committed_token_ids=ANSWER[:4],
    )


async def test_every_place_to_die_is_survived(kind: str) -> None:
    for count in range(len(ANSWER) + 1):
        async with Server(FakeRouter(Act(tokens=count))) as server, AnyClient(kind, server.address) as client:
            whole(await client.generate())
        assert list(server.router.requests[1].resume.committed_token_ids) == ANSWER[:count]


async def test_dying_again_and_again_is_survived(kind: str) -> None:
    router = FakeRouter(*[Act(tokens=1)] * 5)
    async with Server(router) as server, AnyClient(kind, server.address) as client:
        stream = client.stream()
        chunks = [chunk async for chunk in stream]
        whole(answer := await stream.result())
    assert "".join(chunk.text for chunk in chunks) == TEXT
    assert [chunk.index for chunk in chunks[:6]] == [0, 1, 2, 3, 4, 5]
    assert answer.resumes == 5
    assert [request.resume.lease_epoch for request in router.requests] == [0, 1, 2, 3, 4, 5]
    assert answer.started.lease_epoch == 1  # the answer started once
    assert stream.inner.lease_epoch == 6


async def test_totals_cover_all_streams(kind: str) -> None:
    async with Server(FakeRouter(DIES)) as server, AnyClient(kind, server.address) as client:
        answer = await client.generate()
    metrics = answer.speculation
    sources = [token.source.value for token in answer.tokens]
    assert metrics.accepted_tokens == sources.count("accepted")
    assert metrics.corrected_tokens == sources.count("corrected")
    assert metrics.bonus_tokens == sources.count("bonus")
    assert metrics.target_only_tokens == sources.count("target_only")
    assert (metrics.rounds, metrics.verify_rounds) == (2 + 4, 1 + 3)
    assert len(metrics.per_round_verified) == len(metrics.per_round_accepted) == 4
    assert sum(metrics.per_round_accepted) == metrics.accepted_tokens
    assert metrics.router_us == 50  # times of a lost router are lost with it


async def test_the_last_lease_epoch_seen_is_named(kind: str) -> None:
    moved = Act(responses=(started(), tokens_at(0, [ACCEPTED], lease_epoch=5), tokens_at(1, [ACCEPTED], lease_epoch=3)))
    async with Server(FakeRouter(moved)) as server, AnyClient(kind, server.address) as client:
        whole(await client.generate())
    assert server.router.requests[1].resume.lease_epoch == 5


async def test_another_numerics_class_is_flagged_for_good(kind: str) -> None:
    acts = (DIES, Act(tokens=3, numerics_class="class-b"), Act(numerics_class="class-b"))
    async with Server(FakeRouter(*acts)) as server, AnyClient(kind, server.address) as client:
        stream = client.stream()
        assert not stream.inner.class_changed
        answer = await stream.result()
    assert answer.class_changed
    assert stream.inner.numerics_class == "class-b"
    assert answer.started.numerics_class == "class-a"
    assert [request.resume.numerics_class for request in server.router.requests] == ["", "class-a", "class-b"]


async def test_before_the_start_the_same_request_goes_again(kind: str) -> None:
    router = FakeRouter(Act(start=False), Act(start=False))
    async with Server(router) as server, AnyClient(kind, server.address) as client:
        whole(answer := await client.generate(request_id="mine"))
    assert answer.resumes == 0
    assert [request.request_id for request in router.requests] == ["mine"] * 3
    assert not any(request.HasField("resume") for request in router.requests)


async def test_before_the_start_it_ends_in_unavailable(kind: str) -> None:
    router = FakeRouter(*[Act(start=False, details="no target")] * 9)
    async with Server(router) as server, AnyClient(kind, server.address, retry=RetryPolicy(attempts=2)) as client:
        with pytest.raises(UnavailableError, match=r"after 2 more attempts .* UNAVAILABLE: no target"):
            await client.generate()
    assert len(router.requests) == 3


async def test_waits_grow_jittered_and_bounded(kind: str) -> None:
    draws = iter([0.0, 0.5, 1.0, 0.0, 0.0])
    policy = RetryPolicy(attempts=5, first_delay_s=0.2, max_delay_s=1.0)
    router = FakeRouter(DIES, *[Act(tokens=0)] * 9)
    async with (
        Server(router) as server,
        AnyClient(kind, server.address, retry=policy, random=lambda: next(draws)) as client,
    ):
        with pytest.raises(ConnectionLostError, match=r"after 4 tokens .* 5 more attempts") as caught:
            await client.generate()
    assert client.waits == pytest.approx([0.2, 0.3, 0.4, 1.0, 1.0])
    assert caught.value.received is not None
    assert caught.value.received.text == "t0 t1 t2 t3 "
    assert caught.value.received.started is not None
    assert len(router.requests) == 6


async def test_attempts_count_from_the_last_new_token(kind: str) -> None:
    acts = [act for _ in range(4) for act in (Act(tokens=1), Act(tokens=0))]
    async with Server(FakeRouter(*acts)) as server:
        async with AnyClient(kind, server.address, retry=RetryPolicy(attempts=2)) as client:
            whole(await client.generate())
        server.router.acts = list(acts)
        async with AnyClient(kind, server.address, retry=RetryPolicy(attempts=2, total_attempts=3)) as client:
            with pytest.raises(ConnectionLostError, match="after 2 tokens"):
                await client.generate()


async def test_the_budget_of_lost_seconds_ends_it(kind: str) -> None:
    clock = Clock()
    policy = RetryPolicy(attempts=100, total_attempts=100, budget_s=5.0, first_delay_s=2.0, max_delay_s=2.0)
    router = FakeRouter(DIES, *[Act(tokens=0)] * 50)
    async with (
        Server(router) as server,
        AnyClient(kind, server.address, retry=policy, random=lambda: 0.0, clock=clock) as client,
    ):
        clock.pass_waits(client)
        with pytest.raises(ConnectionLostError, match=r"2 more attempts in 4\.0 s"):
            await client.generate()
    assert client.waits == [2.0, 2.0]


async def test_the_stall_is_told(kind: str) -> None:
    clock = Clock()
    router = FakeRouter(DIES, Act(tokens=0), Act(tokens=2))
    async with (
        Server(router) as server,
        AnyClient(
            kind, server.address, random=lambda: 0.0, clock=clock, retry=RetryPolicy(first_delay_s=0.5)
        ) as client,
    ):
        clock.pass_waits(client)
        stream = client.stream()
        answer = await stream.result()
    assert client.waits == [0.5, 1.0, 0.5]
    assert answer.stall_s == pytest.approx(2.0)
    assert stream.inner.stall_s == answer.stall_s
    assert stream.inner.resumes == 3


async def test_no_attempt_is_made_that_can_not_meet_the_timeout(kind: str) -> None:
    async with (
        Server(FakeRouter(DIES)) as server,
        AnyClient(kind, server.address, retry=RetryPolicy(first_delay_s=9, max_delay_s=9)) as client,
    ):
        with pytest.raises(ConnectionLostError):
            await client.generate(timeout=4)
    assert client.waits == []


async def test_a_resume_waits_for_a_full_server(kind: str) -> None:
    full = Act(start=False, code=Code.RESOURCE_EXHAUSTED, trailing=(("paceline-retry-after-ms", "1500"),))
    async with (
        Server(FakeRouter(DIES, full)) as server,
        AnyClient(kind, server.address, random=lambda: 0.0) as client,
    ):
        whole(await client.generate())
    assert client.waits == pytest.approx([0.1, 1.7])


@pytest.mark.parametrize(
    ("code", "details", "error"),
    [
        (Code.INTERNAL, "internal error; the service's log has the details", ServerError),
        (Code.UNAUTHENTICATED, "key revoked", AuthenticationError),
    ],
)
async def test_what_repeating_can_not_help_fails_at_once_with_what_came(
    kind: str, code: grpc.StatusCode, details: str, error: type[Exception]
) -> None:
    async with (
        Server(FakeRouter(replace(DIES, code=code, details=details))) as server,
        AnyClient(kind, server.address) as client,
    ):
        stream = client.stream()
        with pytest.raises(error, match=details):
            await stream.result()
    assert stream.inner.received.token_ids == tuple(ANSWER[:4])
    assert client.waits == []


async def test_a_stopped_router_is_replaced_by_the_next(kind: str) -> None:
    async with (
        Server(FakeRouter(Act(tokens=4, hang=True))) as first,
        Server(FakeRouter()) as second,
        AnyClient(kind, [first.address, second.address]) as client,
    ):
        stream = client.stream()
        await anext(stream)
        await asyncio.wait_for(first.router.hanging.wait(), 5)
        await first.stop()
        whole(answer := await stream.result())
        assert answer.resumes == 1
        assert answer.stall_s > 0
        whole(await client.generate())  # stays with the one that works
    assert len(first.router.requests) == 1
    assert list(second.router.requests[0].resume.committed_token_ids) == ANSWER[:4]
    assert len(second.router.requests) == 2


async def test_an_address_nobody_listens_on_is_passed_over(kind: str) -> None:
    with socket.socket() as taken:  # and given back at once
        taken.bind(("127.0.0.1", 0))
        free = f"127.0.0.1:{taken.getsockname()[1]}"
    async with Server(FakeRouter()) as server, AnyClient(kind, f"{free}, {server.address}") as client:
        whole(await client.generate())
        assert len(await client.models()) == 1
    assert len(client.waits) == 1
