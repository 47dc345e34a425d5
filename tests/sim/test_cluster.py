"""Simulated clusters: the same text as plain decoding, an end to everything, deadlines that bound the stalls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from paceline.speculation.leases import Side
from paceline.speculation.params import SpeculationMode, SpeculationParams

from tests.sim.cluster import Cluster
from tests.sim.network import Weather
from tests.sim.properties import check
from tests.sim.scenario import Outcome, Scenario, scenario_of
from tests.sim.workers import Cost, SimDraft

SEEDS = 32


def run(seed: int, scenario: Scenario) -> tuple[Cluster, list[Outcome]]:
    cluster = Cluster(seed, scenario)
    outcomes = cluster.run()
    check(cluster, outcomes)
    return cluster, outcomes


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_session_ends_with_the_targets_own_tokens(seed: int) -> None:
    try:
        run(seed, scenario_of(seed))
    except AssertionError as error:
        pytest.fail(f"{error}\nreplay: .venv/bin/python -m tests.sim.replay {seed}")


@pytest.mark.parametrize("seed", [4, 5, 13, 19])
def test_the_same_seed_gives_the_same_transcript(seed: int) -> None:
    first, second = (run(seed, scenario_of(seed))[0] for _ in range(2))
    assert first.world.transcript == second.world.transcript


@pytest.mark.parametrize("seed", range(6))
def test_trouble_with_drafts_stalls_nobody_longer_than_a_draft_deadline_and_a_few_steps(seed: int) -> None:
    scenario = Scenario(targets=1, draft_faults=6, slow_drafts=0.3, weather=Weather(), trouble_s=0.6)
    _, outcomes = run(seed, scenario)
    steps = 6 * 0.012  # a prefill of others, the step under way, its own, and the network
    assert max(outcome.longest_stall_s for outcome in outcomes) < scenario.policy.draft_deadline_s + steps


@pytest.mark.parametrize("seed", range(4))
def test_a_lost_verdict_stalls_nobody_longer_than_the_verify_deadline_and_an_opening(seed: int) -> None:
    scenario = Scenario(weather=Weather(drop=0.02), arrivals_s=0.05)
    cluster, outcomes = run(seed, scenario)
    policy = scenario.policy
    dropped = sum("dropped" in line for line in cluster.world.transcript)
    bound = (policy.verify_deadline_s + policy.open_deadline_s + 2 * policy.sweep_s + 0.1) * max(1, dropped)
    assert max(outcome.longest_stall_s for outcome in outcomes) < bound


@pytest.mark.parametrize("seed", range(4))
def test_workers_hold_nothing_after_all_sessions_ended(seed: int) -> None:
    cluster, _ = run(seed, Scenario(cancels=0.4))
    cluster.settle()
    for link in cluster.links.values():
        worker = link.worker
        held = worker.verifier.sessions if hasattr(worker, "verifier") else worker.worker.sessions
        assert held == 0, worker.address


@pytest.mark.parametrize("cohorts", [1, 2])
def test_cohorts_change_the_schedule_and_not_a_token(cohorts: int) -> None:
    base = Scenario(targets=1, sessions=12)
    check(*run(11, replace(base, policy=replace(base.policy, cohorts=cohorts))))


ALONE = Scenario(
    targets=1, drafts=1, sessions=1, output=(300, 301), weather=Weather(delay_min_s=0.0001, delay_max_s=0.0003)
)
OFF, AUTO = SpeculationParams(SpeculationMode.OFF), SpeculationParams(drafter="model")


def alone(seed: int, speculation: SpeculationParams, draft_run_s: float) -> tuple[float, int]:
    """One session: virtual seconds after its first token, and how often drafts were asked for."""
    scenario = replace(ALONE, speculation=(speculation,), draft_run_s=(draft_run_s, 1.2 * draft_run_s))
    cluster, (outcome,) = run(seed, scenario)
    asked = sum("▶ d0" in line for line in cluster.world.transcript)
    return outcome.moments[-1] - outcome.moments[1], asked


@pytest.mark.parametrize("draft_run_s", [0.0004, 0.002, 0.02])
def test_a_session_drafts_while_it_pays_and_loses_little_where_it_does_not(draft_run_s: float) -> None:
    seeds = (0, 1, 2, 4)  # long answers
    plain = [alone(seed, OFF, draft_run_s)[0] for seed in seeds]
    auto = [alone(seed, AUTO, draft_run_s) for seed in seeds]
    assert min(each / seconds for each, (seconds, _) in zip(plain, auto, strict=True)) > 0.95
    pays = draft_run_s < 0.01
    assert (sum(plain) / sum(seconds for seconds, _ in auto) > 1.5) == pays
    assert pays or max(asked for _, asked in auto) < 10


@pytest.mark.parametrize("mode", [SpeculationMode.AUTO, SpeculationMode.FIXED])
def test_a_question_says_what_time_is_worth_unless_the_request_fixes_how_much_is_drafted(mode: SpeculationMode) -> None:
    scenario = replace(ALONE, speculation=(SpeculationParams(mode, 4),), draft_run_s=(0.0004, 0.0005))
    cluster, _ = run(0, scenario)
    worker = cluster.links[Side.DRAFT, "d0"].worker
    assert isinstance(worker, SimDraft)
    priced = [task for task in worker.asked[5:] if task.token_us]
    assert len(priced) == (len(worker.asked[5:]) if mode is SpeculationMode.AUTO else 0)
    assert all(0 < task.token_us <= 6000 for task in priced)
    assert all(0 < task.row_us < 200 for task in priced)


def duration(cohorts: int, cost: Cost, draft_run_s: tuple[float, float]) -> float:
    """Virtual seconds until sixteen sessions of 100 tokens have ended."""
    calm = Weather(delay_min_s=0.0001, delay_max_s=0.0003)
    base = Scenario(targets=1, drafts=1, sessions=16, arrivals_s=0.01, output=(100, 101), weather=calm)
    drafting = tuple(SpeculationParams(SpeculationMode.FIXED, k) for k in (0, 0, 3, 4, 5, 6))
    policy = replace(base.policy, cohorts=cohorts)
    scenario = replace(base, cost=cost, draft_run_s=draft_run_s, policy=policy, speculation=drafting)
    return run(3, scenario)[0].world.now


@pytest.mark.parametrize(
    ("cost", "draft_run_s", "best"),
    [
        (Cost(0.004, 0.0001), (0.0001, 0.0002), 1),  # n-gram drafts
        (Cost(0.004, 0.0001), (0.010, 0.011), 1),  # verify time nearly flat
        (Cost(0.001, 0.0004), (0.010, 0.011), 2),  # verify time grows with the rows, drafting takes half of it
    ],
)
def test_the_number_of_cohorts_is_chosen_well(cost: Cost, draft_run_s: tuple[float, float], best: int) -> None:
    chosen, pinned = duration(0, cost, draft_run_s), {count: duration(count, cost, draft_run_s) for count in (1, 2)}
    assert min(pinned, key=pinned.__getitem__) == best
    assert chosen < 1.05 * pinned[best]


READING = (SpeculationParams(drafter="checked"), SpeculationParams(SpeculationMode.FIXED, 4, "checked"))
FED = Scenario(targets=1, drafts=1, features=True, output=(40, 60), speculation=READING)


TROUBLE: dict[str, Any] = {"feature_breaks": 0.08, "feature_room": 260, "draft_faults": 3, "target_faults": 1}


def drafted(cluster: Cluster) -> tuple[int, int]:
    """Asks that had all their features, and asks that had not, of drafters that checked every row."""
    return sum(each.drafted for each in cluster.readers), sum(each.starved for each in cluster.readers)


@pytest.mark.parametrize("seed", range(3))
def test_features_are_there_when_drafts_are_asked_for(seed: int) -> None:
    cluster, outcomes = run(seed, replace(FED, sessions=4))
    fed, starved = drafted(cluster)
    assert fed > 10 * starved
    assert any(commit.accepted for outcome in outcomes for commit in outcome.commits if commit.drafter == "checked")


@pytest.mark.parametrize("seed", range(6))
def test_features_that_are_late_or_lost_cost_drafts_and_nothing_else(seed: int) -> None:
    """Streams break every few messages, and there is too little room: the text stays, and no row is another's."""
    cluster, _ = run(seed, replace(FED, drafts=2, sessions=10, **TROUBLE))
    fed, starved = drafted(cluster)
    assert fed
    assert starved


def test_new_draft_workers_get_all_features_from_the_first() -> None:
    scenario = replace(FED, sessions=3, draft_faults=2, arrivals_s=0.01, trouble_s=0.3, outage_max_s=0.1)
    later = [reader for seed in range(4) for reader in run(seed, scenario)[0].readers[1:]]
    assert any(reader.drafted for reader in later)


def test_sessions_whose_target_keeps_no_features_are_drafted_for_without() -> None:
    wanted = (SpeculationParams(SpeculationMode.FIXED, 4),)  # of the default drafter, which reads them
    mixed = replace(FED, targets=2, feature_targets=1, drafts=2, sessions=8, speculation=wanted)
    calm = [run(seed, mixed)[1] for seed in range(2)]
    drafters = {commit.drafter for outcomes in calm for each in outcomes for commit in each.commits if commit.accepted}
    assert {"checked", "ngram"} <= drafters
    for seed in range(3):  # sessions move between a target that keeps them and one that doesn't
        run(seed, replace(mixed, target_faults=4, outage_max_s=0.3, trouble_s=0.4))
