"""A hidden-state drafter the whole way: features by their own stream, drafts through the router, the target's tokens.

The drafter's weights are random: what it drafts is judged and rejected, which is the harder half of being lossless.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from paceline.runtime.config import DraftConfig, EngineConfig, HiddenConfig, TargetConfig
from paceline.speculation.errors import InvalidRequest
from paceline.target.assembly import load
from paceline.target.feeder import Connect, insecure
from paceline_client import AsyncClient, Speculation

from tests.congruence.small_cluster import small_cluster
from tests.unit.hidden_folder import DEMO, demo_drafter, demo_eagle

pytestmark = pytest.mark.model

OFF = Speculation(mode="off")
PROMPTS = ("Once upon a time there was", "Count: one, two, three, four, one, two, three,")
TOKENS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_drafter(tmp_path_factory.mktemp("drafters") / "tiny-dspark")


@pytest.fixture(scope="module")
def eagle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_eagle(tmp_path_factory.mktemp("drafters") / "tiny-eagle3")


def configs(folder: Path, *, projector: bool = True, name: str = "dspark") -> tuple[TargetConfig, DraftConfig]:
    projectors = (str(folder),) if projector else ()
    target = TargetConfig(engine=EngineConfig(model=DEMO, kv_tokens=4096), projectors=projectors, step_tokens=32)
    hidden = HiddenConfig(checkpoint=str(folder), context_tokens=1024)
    drafters = ("ngram", name, "auto")
    return target, DraftConfig(engine=None, drafters=drafters, default_drafter=name, hidden=hidden)


async def answers(client: AsyncClient, **options: Any) -> list[Any]:
    """Of all prompts, at once; the second is prefilled in several steps."""
    prompts = [PROMPTS[0], " ".join(PROMPTS[1:] * 12)]
    asked = [client.generate(prompt, max_tokens=TOKENS, seed=11, ignore_eos=True, **options) for prompt in prompts]
    return list(await asyncio.gather(*asked))


def drafting(drafter: str = "dspark") -> Speculation:
    return Speculation(mode="fixed", max_draft_tokens=4, drafter=drafter)


def unreachable(address: str) -> grpc.aio.Channel:
    """Nobody listens there: features never come."""
    del address
    return insecure("127.0.0.1:1")


def fleeting(address: str) -> grpc.aio.Channel:
    """A connection that is cut again and again."""
    channel = insecure(address)
    asyncio.get_running_loop().call_later(0.15, lambda: asyncio.ensure_future(channel.close()))
    return channel


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_the_text_is_plain_decodings_and_drafts_are_made(folder: Path, temperature: float) -> None:
    async with small_cluster(*configs(folder)) as (_, client):
        plain = await answers(client, temperature=temperature, speculation=OFF)
        for drafter in ("dspark", "auto", ""):
            drafted = await answers(client, temperature=temperature, speculation=drafting(drafter))
            assert [each.token_ids for each in drafted] == [each.token_ids for each in plain]
            if drafter != "auto":  # which may not think much of it
                assert all(each.speculation.drafted_tokens > TOKENS for each in drafted)
        auto = await answers(client, temperature=temperature)  # the defaults
        assert [each.token_ids for each in auto] == [each.token_ids for each in plain]
        rejection = await answers(
            client, temperature=temperature, verification_mode="rejection", speculation=drafting()
        )
        assert all(each.speculation.drafted_tokens > TOKENS and len(each.token_ids) == TOKENS for each in rejection)


async def test_eagle3_drafts_and_changes_no_token(eagle: Path) -> None:
    async with small_cluster(*configs(eagle, name="eagle3")) as (_, client):
        for temperature in (0.0, 1.0):
            plain = await answers(client, temperature=temperature, speculation=OFF)
            drafted = await answers(client, temperature=temperature, speculation=drafting("eagle3"))
            assert [each.token_ids for each in drafted] == [each.token_ids for each in plain]
            assert all(each.speculation.drafted_tokens > TOKENS for each in drafted)


@pytest.mark.parametrize("connect", [unreachable, fleeting])
async def test_features_that_never_come_or_break_off_change_no_token(folder: Path, connect: Connect) -> None:
    async with small_cluster(*configs(folder), connect=connect) as (_, client):
        plain = await answers(client, temperature=1.0, speculation=OFF)
        drafted = await answers(client, temperature=1.0, speculation=drafting())
    assert [each.token_ids for each in drafted] == [each.token_ids for each in plain]
    if connect is unreachable:
        assert not any(each.speculation.drafted_tokens for each in drafted)


async def test_a_target_that_keeps_no_features_is_drafted_for_without_them(folder: Path) -> None:
    async with small_cluster(*configs(folder, projector=False)) as (_, client):
        plain = await answers(client, temperature=0.0, speculation=OFF)
        drafted = await answers(client, temperature=0.0, speculation=Speculation(mode="fixed", max_draft_tokens=4))
        models = await client.models()
    assert [each.token_ids for each in drafted] == [each.token_ids for each in plain]
    assert models[0].drafters == ("ngram",)
    assert drafted[1].speculation.accepted_tokens  # the repeated prompt is looked up


def test_a_drafter_of_another_target_is_refused_by_name(folder: Path) -> None:
    target, _ = configs(folder)
    other = target.model_copy(update={"engine": EngineConfig(model="demo@layers=3", kv_tokens=256)})
    with pytest.raises(InvalidRequest, match=r"projectors: expected drafters of .*of another target"):
        load(other, print)
