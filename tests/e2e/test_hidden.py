"""A hidden-state drafter in real processes: its features find it, and find the worker that comes after it."""

from __future__ import annotations

from pathlib import Path

import pytest
from paceline.runtime.cluster import ClusterSpec
from paceline_client import AsyncClient, Generation, Speculation

from tests.e2e.hosting import KILLABLE, hosting, on_failure
from tests.unit.hidden_folder import DEMO, demo_drafter

pytestmark = [pytest.mark.e2e, pytest.mark.model]

PROMPT = "Riders in a line take turns at the front. " * 6
TOKENS = 40
PATIENT = "router.draft_deadline_ms=5000"  # drafts are to be lost by a kill, not by a busy machine


async def answer(client: AsyncClient, speculation: Speculation) -> Generation:
    done = await client.generate(
        PROMPT, temperature=0.7, seed=3, max_tokens=TOKENS, ignore_eos=True, speculation=speculation
    )
    assert len(done.token_ids) == TOKENS
    return done


async def test_features_reach_the_drafter_and_its_successor(demo_model: str, tmp_path: Path) -> None:
    assert demo_model == DEMO.partition("@")[0]
    folder = demo_drafter(tmp_path / "tiny-dspark")
    spec = ClusterSpec(model=DEMO, drafter_checkpoint=folder, threads=1, restart=KILLABLE, settings=(PATIENT,))
    with hosting(spec) as hosted:
        async with on_failure(hosted.tails), AsyncClient(hosted.address) as client:
            plain = await answer(client, Speculation("off"))
            asking = Speculation("fixed", max_draft_tokens=4, drafter="dspark")
            for _ in range(2):
                done = await answer(client, asking)
                assert done.token_ids == plain.token_ids
                # The prompt's own round has none; a drafter of random weights is right about next to nothing.
                assert done.speculation.drafted_tokens > 3 * (done.speculation.rounds - 3)
                await hosted.kill("draft-0")
                await hosted.until_whole()
