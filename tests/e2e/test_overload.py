"""A cluster with few places: who doesn't fit is told at once, and nobody else notices."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from paceline_client import AsyncClient, GenerateOptions, OverloadedError, Speculation

from tests.e2e.answers import PROMPT, options_of
from tests.e2e.conftest import MAX_SESSIONS, MAX_WAITING
from tests.e2e.hosting import Hosted, on_failure, until

pytestmark = pytest.mark.e2e

LONG = 500  # tokens, 5 ms each at least: long enough for a few requests meanwhile
AT_ONCE_S = 2.0


def plain(tokens: int) -> GenerateOptions:
    return options_of("sampled", Speculation("off"), tokens)


async def test_who_does_not_fit_is_told_at_once(fake_cluster: Hosted) -> None:
    hosted = fake_cluster

    async def taken(under_way: int, waiting: int) -> None:
        async def holds() -> bool:
            stats = (await hosted.status())["stats"]
            return (stats["under_way"], stats["waiting"]) == (under_way, waiting)

        await until(holds, 5, f"{under_way} answers under way and {waiting} waiting", hosted.tails)

    await hosted.until_idle(10)
    async with on_failure(hosted.tails), AsyncClient(hosted.address) as client:
        expected = (await client.generate(PROMPT, **plain(16))).token_ids
        answers = [asyncio.create_task(client.generate(PROMPT, **plain(LONG))) for _ in range(MAX_SESSIONS)]
        await taken(MAX_SESSIONS, 0)
        waiting = [asyncio.create_task(client.generate(PROMPT, **plain(16))) for _ in range(MAX_WAITING)]
        await taken(MAX_SESSIONS, MAX_WAITING)
        await refused_over_grpc(client)
        await refused_over_http(hosted)
        assert not any(task.done() for task in answers), "the places were not all taken any more"
        whole = await asyncio.gather(*answers)
        assert {answer.token_ids for answer in whole} == {whole[0].token_ids}
        assert [len(answer.token_ids) for answer in whole] == [LONG] * MAX_SESSIONS
        assert whole[0].token_ids[:16] == expected
        assert {(await task).token_ids for task in waiting} == {expected}
    await hosted.until_idle(5)


async def refused_over_grpc(client: AsyncClient) -> None:
    began = time.monotonic()
    with pytest.raises(OverloadedError, match=f"{MAX_SESSIONS} answers are under way") as refused:
        await client.generate(PROMPT, max_tokens=1)
    assert time.monotonic() - began < AT_ONCE_S
    assert refused.value.retry_after_s is not None
    assert 0 < refused.value.retry_after_s <= 60


async def refused_over_http(hosted: Hosted) -> None:
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=hosted.http, timeout=30) as client:
        refused = await client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 1})
    assert time.monotonic() - began < AT_ONCE_S
    assert refused.status_code == 429, refused.text
    assert int(refused.headers["retry-after"]) >= 1
    assert int(refused.headers["retry-after-ms"]) >= 1
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
