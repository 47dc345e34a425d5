"""Workers that die, fall silent or come back, and answers that are resumed: the same tokens each time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from paceline.router.requests import Committed, Event, Request, Resume, SamplingRequest, Started
from paceline.speculation.errors import InvalidRequest, NotFound, StaleLease, Unavailable

from tests.unit.router_kit import PROMPT, ask, cluster, collect, completed, tokens_of
from tests.unit.router_workers import DraftScript, ScriptedDraft, ScriptedTarget, TargetScript, plain


async def test_a_draft_worker_killed_mid_stream_changes_no_token_and_stalls_once_at_most() -> None:
    drafts = ScriptedDraft()
    async with cluster([ScriptedTarget(TargetScript(step_s=0.005))], [drafts]) as router:
        events: list[Event] = []
        moments: list[float] = []
        async for event in router.generate(ask(200)):
            events.append(event)
            moments.append(asyncio.get_running_loop().time())
            if len(events) == 8:
                await drafts.kill()
    assert tokens_of(events) == plain(PROMPT, 200, 1)
    assert completed(events).stats.missed_drafts <= 1
    assert max(later - earlier for earlier, later in pairwise(moments)) < 0.15 + 0.35  # a deadline, and a busy machine


async def test_a_silent_draft_worker_costs_a_session_one_deadline_then_its_breaker_opens() -> None:
    async with cluster([ScriptedTarget()], [ScriptedDraft(DraftScript(silent=True))], draft_deadline_ms=50) as router:
        events = await collect(router, ask(60))
        (worker,) = [worker for worker in router.snapshot().workers if worker.side == "draft"]
    assert tokens_of(events) == plain(PROMPT, 60, 1)
    assert completed(events).stats.missed_drafts == 1
    assert worker.breaker in {"open", "half_open"}


async def test_a_session_moves_to_another_draft_worker_when_its_own_dies() -> None:
    workers = [ScriptedDraft(incarnation="d-1"), ScriptedDraft(incarnation="d-2")]
    async with cluster([ScriptedTarget(TargetScript(step_s=0.005))], workers) as router:
        drafted_after = 0
        killed = False
        async for event in router.generate(ask(200)):
            if isinstance(event, Committed):
                drafted_after += event.drafted if killed else 0
                if event.index > 30 and not killed:
                    killed = True
                    await next(worker for worker in workers if worker.sessions).kill()
    assert drafted_after > 50


async def test_a_verifier_killed_mid_stream_changes_no_token() -> None:
    targets = [ScriptedTarget(TargetScript(step_s=0.005), incarnation=f"t-{i}") for i in range(2)]
    async with cluster(targets, [ScriptedDraft()]) as router:
        tokens: list[int] = []
        epochs: list[int] = []
        killed = False
        async for event in router.generate(ask(200)):
            if isinstance(event, Committed):
                tokens.extend(event.tokens)
                epochs.append(event.lease_epoch)
                if len(tokens) > 40 and not killed:
                    killed = True
                    await next(target for target in targets if target.sessions).kill()
    assert tuple(tokens) == plain(PROMPT, 200, 1)
    assert epochs[-1] > epochs[0]


async def test_an_answer_moved_to_another_numerics_class_is_told_by_a_second_started() -> None:
    scripts = [TargetScript(step_s=0.005, numerics_class=name) for name in ("class-a", "class-b")]
    targets = [ScriptedTarget(script) for script in scripts]
    async with cluster(targets) as router:
        starts: list[Started] = []
        async for event in router.generate(ask(60)):
            if isinstance(event, Started):
                starts.append(event)
            elif isinstance(event, Committed) and event.index == 20:
                await next(target for target in targets if target.sessions).kill()
    assert [start.class_changed for start in starts] == [False, True]
    assert starts[0].numerics_class != starts[1].numerics_class
    assert starts[1].lease_epoch > starts[0].lease_epoch


async def test_the_last_verifier_gone_ends_the_answer_after_the_grace_period() -> None:
    target = ScriptedTarget(TargetScript(step_s=0.005))
    async with cluster([target], reconnect_max_s=0.1) as router:
        stream = router.generate(ask(500))
        async for event in stream:
            if isinstance(event, Committed) and event.index == 10:
                await target.kill()
                break
        with pytest.raises(Unavailable):
            async for _ in stream:
                pass


async def test_a_verifier_that_comes_back_in_time_goes_on_with_the_answer() -> None:
    target = ScriptedTarget(TargetScript(step_s=0.005), incarnation="t-1")
    async with cluster([target]) as router:
        tokens: list[int] = []
        async for event in router.generate(ask(100)):
            if isinstance(event, Committed):
                tokens.extend(event.tokens)
                if event.index == 30:
                    port = int(target.address.rpartition(":")[2])
                    await target.kill()
                    target.incarnation = "t-2"
                    await target.start(port)
    assert tuple(tokens) == plain(PROMPT, 100, 1)


async def test_a_silent_verifier_counts_as_lost_after_the_verify_deadline() -> None:
    silent = ScriptedTarget(TargetScript(silent=True))
    async with cluster([silent, ScriptedTarget()], verify_deadline_ms=200) as router:
        answers = await asyncio.gather(*(collect(router, ask(20, seed)) for seed in range(4)))
    for seed, events in enumerate(answers):
        assert tokens_of(events) == plain(PROMPT, 20, seed)


async def test_a_resync_of_the_draft_worker_costs_one_round_without_drafts() -> None:
    drafts = ScriptedDraft()
    async with cluster([ScriptedTarget(TargetScript(step_s=0.005))], [drafts]) as router:
        rounds: list[int] = []
        async for event in router.generate(ask(150)):
            if isinstance(event, Committed):
                rounds.append(event.drafted)
                if event.index > 50 and event.index < 60:
                    drafts.script.resync_once.update(drafts.sessions)
        resyncs = router.snapshot().rounds.draft_resyncs
    assert resyncs >= 1
    assert rounds[-3] > 0


async def test_a_resumed_answer_goes_on_after_its_tokens_with_the_same_text() -> None:
    whole = plain(PROMPT, 50, 9)
    resume = Resume(PROMPT, whole[:20], seed=9, numerics_class="class-a", lease_epoch=3, session_id="s-lost")
    request = Request(resume=resume, sampling=SamplingRequest(max_tokens=50))
    async with cluster([ScriptedTarget()], [ScriptedDraft()]) as router:
        events = await collect(router, request)
    started = events[0]
    assert isinstance(started, Started)
    assert (started.session_id, started.class_changed) == ("s-lost", False)
    assert started.lease_epoch > 3
    first = events[1]
    assert isinstance(first, Committed)
    assert first.index == 20
    assert tokens_of(events) == whole[20:]
    assert completed(events).completion_tokens == 50


async def test_a_resumed_answer_in_another_class_is_flagged() -> None:
    resume = Resume(PROMPT, (97,), seed=9, numerics_class="class-of-old", lease_epoch=3, session_id="s-lost")
    async with cluster([ScriptedTarget()]) as router:
        events = await collect(router, Request(resume=resume, sampling=SamplingRequest(max_tokens=5)))
    assert isinstance(events[0], Started)
    assert events[0].class_changed


async def test_a_resumed_answer_that_was_whole_completes_at_once() -> None:
    resume = Resume(PROMPT, (97, 257), seed=9, numerics_class="class-a", lease_epoch=3, session_id="s-lost")
    async with cluster([ScriptedTarget()]) as router:
        events = await collect(router, Request(resume=resume, sampling=SamplingRequest(max_tokens=50)))
    assert len(events) == 2
    assert completed(events).finish.stop_token_id == 257


async def test_a_resume_takes_over_from_a_stream_that_was_not_noticed_to_be_lost() -> None:
    async with cluster([ScriptedTarget(TargetScript(step_s=0.005))], [ScriptedDraft()]) as router:
        lost = router.generate(ask(80, 3))
        started, first = await anext(lost), await anext(lost)
        assert isinstance(started, Started)
        assert isinstance(first, Committed)
        resume = Resume(PROMPT, first.tokens, 3, started.numerics_class, first.lease_epoch, started.session_id)
        request = Request(resume=resume, sampling=SamplingRequest(max_tokens=80))
        with pytest.raises(NotFound):
            await collect(router, replace(request, tenant="somebody else"))
        events = await collect(router, request)
        with pytest.raises(StaleLease):
            async for _ in lost:
                pass
    assert first.tokens + tokens_of(events) == plain(PROMPT, 80, 3)


@pytest.mark.parametrize(
    ("fields", "says"), [({"session_id": ""}, "session_id"), ({"lease_epoch": 2**63}, "lease_epoch")]
)
async def test_a_malformed_resume_is_refused_by_name(fields: dict[str, Any], says: str) -> None:
    resume = replace(Resume(PROMPT, (97,), 1, "class-a", 1, "s-1"), **fields)
    async with cluster([ScriptedTarget()]) as router:
        with pytest.raises(InvalidRequest, match=says):
            await collect(router, Request(resume=resume))
