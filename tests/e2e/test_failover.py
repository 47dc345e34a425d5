"""Two of everything with the demo model, and kill -9 in mid-stream: the tokens stay the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import pytest
from paceline_client import AsyncClient, Client, Speculation

from tests.e2e.answers import (
    PROMPT,
    SAMPLINGS,
    TOKENS,
    Place,
    Reading,
    drafted_by,
    options_of,
    place_of_only_answer,
    read,
    read_and,
)
from tests.e2e.hosting import Hosted, kill_process, on_failure

pytestmark = [pytest.mark.e2e, pytest.mark.model]

AFTER = 24
DRAFTERS = ("ngram", "dspark")
Tell = Callable[[str], None]
Baseline = dict[tuple[str, str], Reading]


@pytest.fixture(scope="module")
def baseline(demo_cluster: Hosted) -> Iterator[Baseline]:
    """Answers while nothing fails, by sampling and drafter; "off" is plain decoding."""
    kinds = {"off": Speculation("off")} | {drafter: drafted_by(drafter) for drafter in DRAFTERS}
    with Client(demo_cluster.address) as client:
        yield {
            (sampling, drafter): read(client, PROMPT, options_of(sampling, kind))
            for sampling in SAMPLINGS
            for drafter, kind in kinds.items()
        }


def test_drafters_change_no_token(baseline: Baseline, tell: Tell) -> None:
    for (sampling, drafter), reading in baseline.items():
        plain = baseline[sampling, "off"]
        assert len(reading.tokens) == TOKENS
        assert tuple(reading.tokens) == reading.done.token_ids == plain.done.token_ids, (sampling, drafter)
        assert reading.text == reading.done.text == plain.text
        assert reading.done.resumes == 0
        metrics = reading.done.speculation
        assert (metrics.drafted_tokens > 0) == (drafter != "off"), (sampling, drafter)
        tell(f"{sampling}, {drafter}: τ {metrics.accepted_length or 1:.2f}, longest gap {reading.longest:.2f} s")
    assert baseline["greedy", "off"].tokens != baseline["sampled", "off"].tokens


@pytest.mark.parametrize(("sampling", "drafter"), [("sampled", "dspark"), ("greedy", "ngram")])
async def test_a_dead_draft_worker_changes_no_token(
    demo_cluster: Hosted, baseline: Baseline, tell: Tell, sampling: str, drafter: str
) -> None:
    trial = Trial(demo_cluster, baseline, sampling, drafter)
    reading, _ = await trial.run(lambda place: demo_cluster.kill(place.draft))
    assert AFTER <= reading.done_at < TOKENS, "the draft worker died too late to be missed"
    assert reading.done.resumes == 0
    tell(trial.told("draft worker", reading))
    await trial.until_as_before()


@pytest.mark.parametrize(("sampling", "drafter"), [("sampled", "ngram"), ("greedy", "dspark")])
async def test_a_dead_verifier_changes_no_token(
    demo_cluster: Hosted, baseline: Baseline, tell: Tell, sampling: str, drafter: str
) -> None:
    trial = Trial(demo_cluster, baseline, sampling, drafter)
    reading, _ = await trial.run(lambda place: demo_cluster.kill(place.target))
    assert reading.moved, "the session stayed where it was"
    assert reading.done.resumes == 0
    assert not reading.done.class_changed
    tell(trial.told("verifier", reading))
    await trial.until_as_before()


@pytest.mark.parametrize(("sampling", "drafter"), [("sampled", "dspark"), ("greedy", "ngram")])
async def test_a_dead_router_replica_changes_no_token(
    demo_cluster: Hosted, baseline: Baseline, tell: Tell, sampling: str, drafter: str
) -> None:
    async def kill(place: Place) -> None:
        kill_process(place.replica)

    trial = Trial(demo_cluster, baseline, sampling, drafter)
    reading, place = await trial.run(kill)
    assert reading.done.resumes >= 1
    assert not reading.done.class_changed
    tell(f"{trial.told('router replica', reading)}, {reading.done.resumes} resume(s)")
    await trial.until_as_before()
    assert place.replica not in await demo_cluster.statuses()


class Trial:
    """One answer during which a part of the cluster is killed."""

    def __init__(self, hosted: Hosted, baseline: Baseline, sampling: str, drafter: str) -> None:
        self._hosted = hosted
        self._usual = baseline[sampling, drafter]
        self._name = f"{sampling}, {drafter}"
        self._options = options_of(sampling, drafted_by(drafter))

    async def run(self, kill: Callable[[Place], Awaitable[None]]) -> tuple[Reading, Place]:
        """Read the answer, kill after AFTER tokens; its tokens and text have to be the usual ones."""
        places: list[Place] = []

        async def act() -> None:
            places.append(await place_of_only_answer(self._hosted))
            await kill(places[0])

        await self._hosted.until_idle(5)
        async with on_failure(self._hosted.tails), AsyncClient(self._hosted.address) as client:
            reading = await read_and(client, PROMPT, self._options, act, after=AFTER)
        assert tuple(reading.tokens) == reading.done.token_ids == self._usual.done.token_ids
        assert reading.text == reading.done.text == self._usual.text
        return reading, places[0]

    def told(self, victim: str, reading: Reading) -> str:
        """What the reader of the answer noticed."""
        beyond = max(0.0, reading.longest - self._usual.longest)
        return (
            f"kill -9 of the {victim} ({self._name}): stall {beyond:.2f} s, the longest gap being "
            f"{reading.longest:.2f} s, {self._usual.longest:.2f} s without a fault"
        )

    async def until_as_before(self) -> None:
        """The cluster gets whole again and serves."""
        await self._hosted.until_whole()
        async with AsyncClient(self._hosted.address) as client:
            again = await client.generate(PROMPT, **{**self._options, "max_tokens": 8})  # type: ignore[arg-type]
        assert list(again.token_ids) == self._usual.tokens[:8]
