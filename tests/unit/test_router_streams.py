"""The asyncio router over real grpc.aio streams to scripted workers."""

from __future__ import annotations

import asyncio

import pytest
from paceline.router.requests import Committed, Request, Started
from paceline.router.router import Router
from paceline.runtime.config import RouterConfig
from paceline.speculation.errors import DeadlineExceeded, InvalidRequest, NotFound, Overloaded, Unavailable
from paceline.speculation.messages import FinishReason, TokenSource
from paceline.speculation.params import SpeculationMode, SpeculationParams

from tests.unit.router_kit import PROMPT, ask, cluster, collect, completed, tokens_of
from tests.unit.router_workers import CONTEXT, ScriptedDraft, ScriptedTarget, TargetScript, plain


async def test_an_answer_is_started_committed_and_completed_with_the_targets_own_tokens() -> None:
    async with cluster([ScriptedTarget()], [ScriptedDraft()]) as router:
        events = await collect(router, ask())
    started, end = events[0], completed(events)
    assert isinstance(started, Started)
    assert (started.model, started.numerics_class, started.seed) == ("scripted", "class-a", 1)
    assert started.prompt_tokens == PROMPT
    assert tokens_of(events) == plain(PROMPT, 40, 1)
    indices = [event.index for event in events if isinstance(event, Committed)]
    assert indices == sorted(indices)
    assert end.finish.reason is FinishReason.LENGTH
    assert (end.prompt_tokens, end.completion_tokens) == (3, 40)
    assert end.stats.committed == 40
    assert end.stats.by_source[TokenSource.ACCEPTED] > 20
    assert end.stats.rounds < 20
    assert end.waits.verify_us > 0
    assert 0 < end.waits.router_us < end.waits.verify_us


async def test_sixteen_sessions_ride_in_messages_of_eight_and_more() -> None:
    target, drafts = ScriptedTarget(TargetScript(step_s=0.01)), ScriptedDraft()
    async with cluster([target], [drafts]) as router:
        answers = await asyncio.gather(*(collect(router, ask(120, seed)) for seed in range(16)))
        snapshot = router.snapshot()
    for seed, events in enumerate(answers):
        assert tokens_of(events) == plain(PROMPT, 120, seed)
    assert snapshot.sessions_per_message is not None
    assert snapshot.sessions_per_message >= 8, router.stats()
    assert snapshot.messages_per_token is not None
    assert snapshot.messages_per_token < 0.25


async def test_closing_the_generator_releases_the_session_on_both_workers() -> None:
    target, drafts = ScriptedTarget(TargetScript(step_s=0.005)), ScriptedDraft()
    async with cluster([target], [drafts]) as router:
        stream = router.generate(ask(1000))
        async for event in stream:
            if isinstance(event, Committed) and event.drafted:
                break
        await stream.aclose()
        await asyncio.sleep(0.3)
        assert not target.sessions
        assert not drafts.sessions
        assert router.snapshot().under_way == 0
        assert target.released
        assert drafts.released


async def test_text_and_chat_are_tokenized_with_the_targets_tokenizer() -> None:
    async with cluster([ScriptedTarget()]) as router:
        text = await collect(router, ask(3, tokens=None, text="hello"))
        chat = await collect(router, ask(3, tokens=None, messages=(("user", "hello"),)))
    assert isinstance(text[0], Started)
    assert text[0].prompt_tokens == tuple(b"hello")
    assert isinstance(chat[0], Started)
    assert len(chat[0].prompt_tokens) > 5


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (ask(model="nobody"), NotFound, "scripted"),
        (ask(tokens=()), InvalidRequest, "prompt"),
        (ask(tokens=(1,) * CONTEXT), InvalidRequest, "context length"),
        (ask(tokens=(258,)), InvalidRequest, "token ids"),
        (ask(text="x"), InvalidRequest, "exactly one"),
        (ask(count=5000), InvalidRequest, "max_tokens"),
        (ask(speculation=SpeculationParams(drafter="oracle")), InvalidRequest, "ngram"),
    ],
)
async def test_a_wrong_request_is_refused_by_name(request_: Request, error: type[Exception], says: str) -> None:
    async with cluster([ScriptedTarget()], [ScriptedDraft()]) as router:
        with pytest.raises(error, match=says):
            await collect(router, request_)


async def test_max_tokens_is_cut_to_the_context() -> None:
    async with cluster([ScriptedTarget()]) as router:
        prompt = (97,) * (CONTEXT - 5)
        events = await collect(router, ask(100, tokens=prompt))
    assert len(tokens_of(events)) == 5
    assert completed(events).finish.reason is FinishReason.LENGTH


async def test_beyond_the_waiting_queue_requests_are_refused_at_once() -> None:
    async with cluster([ScriptedTarget(TargetScript(step_s=0.01))], max_sessions=2, max_waiting=1) as router:
        tasks = [asyncio.create_task(collect(router, ask(30, seed))) for seed in range(4)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [result for result in results if isinstance(result, BaseException)]
    assert len(refused) == 1
    assert isinstance(refused[0], Overloaded)
    assert refused[0].retry_after_s > 0


async def test_an_overloaded_target_refuses_with_its_own_retry_after() -> None:
    async with cluster([ScriptedTarget(TargetScript(overloaded=True))]) as router:
        with pytest.raises(Overloaded) as caught:
            await collect(router, ask())
    assert caught.value.retry_after_s == 0.7


async def test_the_requests_deadline_ends_an_answer() -> None:
    async with cluster([ScriptedTarget(TargetScript(step_s=0.05))]) as router:
        with pytest.raises(DeadlineExceeded):
            await collect(router, ask(1000, timeout_s=0.3))


async def test_speculation_off_asks_no_draft_worker() -> None:
    drafts = ScriptedDraft()
    async with cluster([ScriptedTarget()], [drafts]) as router:
        events = await collect(router, ask(speculation=SpeculationParams(SpeculationMode.OFF)))
    assert drafts.message_sizes == []
    assert completed(events).stats.by_source[TokenSource.TARGET_ONLY] == 40


async def test_connect_without_a_target_says_why() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        await Router.connect(RouterConfig(targets=("127.0.0.1:9",)), timeout_s=0.3)


async def test_models_and_stats_tell_what_is_served() -> None:
    async with cluster([ScriptedTarget(), ScriptedTarget()], [ScriptedDraft()]) as router:
        (model,) = router.models()
        await collect(router, ask())
        stats = router.stats()
    assert (model.model_id, model.targets, model.drafts, model.drafters) == ("scripted", 2, 1, ("model", "ngram"))
    assert stats["rounds"]["committed_tokens"] == 40
    assert 0 < stats["router_share"] < 1


async def test_long_text_is_tokenized_off_the_event_loop() -> None:
    async with cluster([ScriptedTarget()]) as router:
        events = await collect(router, ask(2, tokens=None, text="x" * 4000))
        with pytest.raises(InvalidRequest, match="context length"):
            await collect(router, ask(2, tokens=None, text="x" * 5000))
    assert completed(events).completion_tokens == 2
