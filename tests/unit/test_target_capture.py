"""Live capture: what a target serves is what it keeps, of those who agreed, within memory and disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.cache.target import Sample, TargetCache, TargetCacheWriter
from paceline.cache.target.verify import verify
from paceline.engine.bits import bf16_bits
from paceline.engine.interface import Slice, StepPlan, Wanted
from paceline.runtime.config import CaptureConfig, EngineConfig, TargetConfig
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.params import SamplingParams
from paceline.target.capture import Choice
from paceline.target.capture_assembly import capture_of
from paceline.target.capture_store import CaptureStore, Segments

from tests.unit.capture_kit import ALL, LAYERS, MEMORY, Target, engine
from tests.unit.target_cache_kit import SPEC, same, sample
from tests.unit.target_kit import VOCAB, opening


def in_one_step(found: Sample) -> Sample:
    """What a sample should be, by one forward pass over all of it."""
    tokens, fake = tuple(found.input_ids.tolist()), engine()
    assert fake.reserve("all", len(tokens))
    piece = Slice("all", 0, tokens, 0, SamplingParams(), 1, hidden=True)
    [hidden] = fake.step(StepPlan(0, (piece,), Wanted(LAYERS, last=True))).hidden
    assert hidden is not None
    assert hidden.last is not None
    return replace(found, hidden=bf16_bits(hidden.layers), last_hidden=bf16_bits(hidden.last))


drafts = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=4), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40), min_size=1, max_size=3),
    rounds=st.lists(drafts, min_size=3, max_size=3),
    step_tokens=st.integers(4, 64),
)
def test_what_is_served_is_what_is_kept(
    prompts: list[list[int]], rounds: list[list[list[int]]], step_tokens: int
) -> None:
    target = Target(ALL, step_tokens=step_tokens)
    plain = Target(Choice(frozenset()), step_tokens=step_tokens)
    sources = [opening(f"s{i}", prompt, max_tokens=40) for i, prompt in enumerate(prompts)]
    for each in (target, plain):
        for source in sources:
            each.open(source)
        for number in range(6):
            for source, theirs in zip(sources, rounds, strict=False):
                if number < len(theirs):
                    each.submit(source, number + 1, theirs[number])
            while each.verifier.waiting:
                each.step()
        for source in sources:
            each.verifier.release(source.session_id, 1)
    assert target.committed == plain.committed, "capturing changed an answer"
    assert not plain.kept
    wanted = {}
    for source in sources:
        whole = (*source.tokens, *target.committed[source.session_id])
        wanted[whole[:-1]] = (*(0,) * source.prompt_len, *(1,) * (len(whole) - 1 - source.prompt_len))
    wanted = {tokens: mask for tokens, mask in wanted.items() if any(mask)}
    found = {tuple(each.input_ids.tolist()): tuple(each.loss_mask.tolist()) for each in target.kept}
    assert found == wanted, "all but the last token of every answer, which no step has fed"
    assert all(same(each, in_one_step(each)) for each in target.kept)


def test_only_those_who_agreed_and_only_their_share() -> None:
    choice = Choice(frozenset({"yes"}), share=0.25)
    assert not any(choice.takes(f"s{i}", "no") for i in range(100))
    taken = [choice.takes(f"s{i}", "yes") for i in range(4000)]
    assert 0.2 < np.mean(taken) < 0.3
    assert taken == [choice.takes(f"s{i}", "yes") for i in range(4000)]
    target = Target(Choice(frozenset({"yes"})))
    for tenant in ("yes", "no"):
        target.answer(opening(tenant, tenant=tenant, max_tokens=8), [()] * 4)
    assert len(target.kept) == 1


def test_a_prefix_others_computed_is_computed_again_for_a_capture() -> None:
    target = Target(Choice(frozenset({"yes"})))
    prompt = [place % VOCAB for place in range(40)]
    for tenant in ("yes", "yes", "no", "no"):
        target.answer(opening(f"{tenant}{len(target.committed)}", prompt, tenant=tenant, max_tokens=8), [()] * 3)
    assert [len(each.input_ids) for each in target.kept] == [42, 42]


def test_a_session_that_moves_here_half_done_is_kept_whole() -> None:
    target = Target(ALL)
    first = opening("a", max_tokens=20)
    said = target.answer(first, [()] * 4)
    target.kept.clear()
    target.answer(opening("b", first.tokens, committed=said, max_tokens=20), [(), ()])
    [found] = target.kept
    assert int(found.loss_mask.sum()) == 5
    assert same(found, in_one_step(found))


def test_a_new_lease_keeps_what_was_computed() -> None:
    target = Target(ALL)
    first = opening("a", max_tokens=20)
    target.open(first)
    for round_id in (1, 2, 3):
        target.submit(first, round_id)
        target.step()
    said = tuple(target.committed["a"])
    again = opening("a", first.tokens, committed=said, max_tokens=20, lease_epoch=2, router_id="r2")
    target.open(again)
    target.submit(again, 1)
    target.step()
    assert target.verifier.release("a", 2)
    [found] = target.kept
    assert tuple(found.input_ids.tolist()) == (*first.tokens, *said)
    assert same(found, in_one_step(found))


def test_a_failed_step_keeps_nothing_of_its_sessions() -> None:
    target = Target(ALL)
    source = opening("a", max_tokens=20)
    target.open(source)
    for round_id in (1, 2):
        target.submit(source, round_id)
        target.step()
    target.submit(source, 3)
    plan = target.verifier.plan(0.0)
    assert plan is not None
    target.verifier.fail(plan, 0.0)
    assert not target.kept
    assert target.engine.counts.empty == 1


def test_what_memory_does_not_hold_is_dropped_and_counted() -> None:
    row = 2 * (len(LAYERS) + 1) * engine().info.hidden_size
    target = Target(ALL, memory=10 * row)
    assert len(target.answer(opening("a", max_tokens=20), [()] * 12)) == 12
    assert (target.engine.counts.behind, target.kept) == (1, [])
    target.answer(opening("b", max_tokens=20), [()] * 5)
    assert (target.engine.counts.taken, len(target.kept)) == (1, 1), "its room is free again"
    full = Target(ALL, room=0)
    full.answer(opening("a", max_tokens=20), [()] * 5)
    assert (full.engine.counts.behind, full.engine.counts.taken) == (1, 0)


def test_the_oldest_cache_goes_when_the_folder_is_full(tmp_path: Path) -> None:
    size = sum(part.nbytes for part in sample(0, 40).parts)
    retention = 8 * (4 * size + 4000)
    segments = Segments(tmp_path, SPEC, retention_bytes=retention)
    for _ in range(100):
        segments.write(sample(0, 40))
    segments.close()
    caches = sorted(path for path in tmp_path.iterdir())
    assert sum(file.stat().st_size for path in caches for file in path.iterdir()) <= retention
    assert [path.name for path in caches][-1] == "000019" or len(caches) < 9
    assert int(caches[0].name) > 0
    for path in caches:
        assert verify(TargetCache.open(path)).sound
    assert same(replace(TargetCache.open(caches[-1])[0], key=0), sample(0, 40))


def test_what_a_killed_target_left_is_sealed_by_the_next(tmp_path: Path) -> None:
    left = TargetCacheWriter(tmp_path / "000000", SPEC)
    left.write(sample(0))
    Segments(tmp_path, SPEC, retention_bytes=1 << 20)
    assert not (tmp_path / "000000/manifest.json").exists(), "somebody is at work there"
    left.close()
    segments = Segments(tmp_path, SPEC, retention_bytes=1 << 20)
    assert len(TargetCache.open(tmp_path / "000000")) == 1
    segments.write(sample(1))
    segments.close()
    assert len(TargetCache.open(tmp_path / "000001")) == 1


def test_the_store_writes_in_its_own_time_and_refuses_what_it_has_no_room_for(tmp_path: Path) -> None:
    size = sum(part.nbytes for part in sample(0).parts)
    store = CaptureStore(Segments(tmp_path, SPEC, retention_bytes=1 << 20), queue_bytes=size)
    assert store.put(size, lambda: sample(0))
    assert not store.put(size + 1, lambda: sample(1))
    store.close()
    assert len(TargetCache.open(tmp_path / "000000")) == 1


def test_a_sample_that_cannot_be_written_is_lost_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CaptureStore(Segments(tmp_path, SPEC, retention_bytes=1 << 20), queue_bytes=MEMORY)
    wrong = replace(sample(0), hidden=sample(0).last_hidden)
    for each in (sample(0), wrong, sample(1)):
        assert store.put(1, lambda each=each: each)  # type: ignore[misc]
    store.close()
    assert (store.written.samples, store.written.lost) == (2, 1)
    assert "target_hidden_states: expected" in caplog.text
    assert len(TargetCache.open(tmp_path / "000000")) == 2


def test_a_configuration_is_refused_by_name(tmp_path: Path) -> None:
    def configured(**capture: Any) -> TargetConfig:
        return TargetConfig(engine=EngineConfig(model="fake"), capture=CaptureConfig(**capture))

    assert capture_of(configured(), engine()) is None
    with pytest.raises(InvalidRequest, match=r"capture.tenants: expected at least one tenant"):
        capture_of(configured(folder=str(tmp_path)), engine())
    with pytest.raises(InvalidRequest, match=r"capture.layers"):
        capture_of(configured(folder=str(tmp_path), tenants=("*",), layers=(9,)), engine())
    capture = capture_of(configured(folder=str(tmp_path / "c"), tenants=("*",)), engine())
    assert capture is not None
    assert capture.close().startswith("captured 0 sessions")
