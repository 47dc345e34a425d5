"""A local cluster of scripted services: what they are configured with, where they are found, how they end."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from paceline.runtime.child import NEVER, Restart, StartFailed, State
from paceline.runtime.cluster import ClusterSpec, LocalCluster, LocalWorkers
from paceline.runtime.cluster_spec import SHIPPED, Configurations
from paceline.speculation.errors import InvalidRequest, NotFound, Unavailable

from tests.unit.cli_scripted import service_commands


def spec_of(tmp_path: Path, **fields: Any) -> ClusterSpec:
    return ClusterSpec(
        log_dir=tmp_path / "logs",
        commands=service_commands(tmp_path),
        restart=Restart(backoff_s=0.01),
        start_timeout_s=20,
        **fields,
    )


def written(tmp_path: Path, name: str) -> dict[str, Any]:
    values = yaml.safe_load((tmp_path / "logs" / f"{name}.yaml").read_text())
    assert isinstance(values, dict)
    return values


async def test_every_process_is_told_of_the_others(tmp_path: Path) -> None:
    async with LocalCluster(spec_of(tmp_path, drafts=2, targets=1, routers=3)) as cluster:
        assert list(cluster.processes) == ["target-0", "draft-0", "draft-1", "router"]
        assert {info.state for info in cluster.processes.values()} == {State.READY}
        router = written(tmp_path, "router")
        assert router["targets"] == list(cluster.targets) == [cluster.processes["target-0"].address]
        assert router["drafts"] == list(cluster.drafts)
        assert router["replicas"] == 3
        assert router["http_port"] == router["grpc_port"] == 0
        assert cluster.http_url == "http://127.0.0.1:8123"
        assert cluster.grpc_address == cluster.processes["router"].address
    assert {info.pid for info in cluster.processes.values()} == {None}


async def test_two_clusters_stand_side_by_side(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    async with LocalCluster(spec_of(first)) as one, LocalCluster(spec_of(second)) as two:
        assert one.grpc_address != two.grpc_address


async def test_a_killed_worker_comes_back_on_its_port(tmp_path: Path) -> None:
    async with LocalWorkers(spec_of(tmp_path)) as workers:
        before = workers.processes["draft-0"]
        await workers.kill("draft-0")
        assert workers.processes["draft-0"].state is State.RESTARTING
        await workers.until_ready("draft-0", timeout_s=20)
        after = workers.processes["draft-0"]
        assert (after.address, after.restarts) == (before.address, 1)
        assert after.pid != before.pid
        with pytest.raises(NotFound, match="process router: expected one of target-0, draft-0"):
            await workers.kill("router")


@pytest.mark.parametrize(("victim", "fatal"), [("router", True), ("target-0", True), ("draft-0", False)])
async def test_a_cluster_fails_with_its_router_or_its_last_target(tmp_path: Path, victim: str, fatal: bool) -> None:
    spec = spec_of(tmp_path)
    async with LocalCluster(ClusterSpec(log_dir=spec.log_dir, commands=spec.commands, restart=NEVER)) as cluster:
        failed = asyncio.create_task(cluster.failed())
        await cluster.kill(victim)
        await asyncio.wait([failed], timeout=5 if fatal else 0.3)
        assert failed.done() is fatal
        if fatal:
            assert failed.result().startswith(f"{victim}: expected it to stay up")
        failed.cancel()


async def test_a_service_that_refuses_its_configuration_stops_the_rest(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, settings=("router.default_drafter=refuse",))
    cluster = LocalCluster(spec)
    with pytest.raises(StartFailed, match=r"router: .*exit code 2.*\ndefault_drafter: expected") as caught:
        await cluster.start()
    assert caught.value.returncode == 2
    assert {info.pid for info in cluster.processes.values()} == {None}


async def test_a_temporary_log_folder_goes_unless_something_failed(tmp_path: Path) -> None:
    good = ClusterSpec(commands=service_commands(tmp_path))
    async with LocalWorkers(good) as workers:
        folder = workers.log_dir
        assert _exists(folder)
    assert not _exists(folder)
    bad = ClusterSpec(commands=service_commands(tmp_path), settings=("draft.default_drafter=refuse",))
    workers = LocalWorkers(bad)
    with pytest.raises(StartFailed):
        await workers.start()
    assert _exists(workers.log_dir / "draft-0.log")


def _exists(path: Path) -> bool:
    return path.exists()


async def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cluster = LocalCluster(spec_of(tmp_path, http_port=port))
        with pytest.raises(InvalidRequest, match=f"http_port: expected a free port, got {port}"):
            await cluster.start()
    assert cluster.processes == {}
    with pytest.raises(Unavailable, match="expected it to be started"):
        _ = cluster.grpc_address


def test_settings_win_over_the_file_and_the_file_over_fields(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("target: {engine: {dtype: float16, kv_tokens: 64}, max_queue: 5}\nrouter: {cohorts: 2}\n")
    spec = ClusterSpec(dtype="float32", threads=3, config=str(file), settings=("target.max_queue=7",))
    target: Any = Configurations(spec).of("target", {})
    assert (target.engine.model, target.engine.threads) == ("demo", 3)
    assert (target.engine.dtype, target.engine.kv_tokens, target.max_queue) == ("float16", 64, 7)
    router: Any = Configurations(spec).of("router", {"targets": ["a:1"]})
    assert (router.cohorts, router.targets) == (2, ("a:1",))


@pytest.mark.parametrize(
    ("fields", "model"),
    [
        ({}, None),
        ({"draft_model": "demo@layers=6"}, "demo@layers=6"),
        ({"model": "/some/model"}, None),
        ({"draft_model": "none"}, None),
        ({"model": "big", "draft_model": "small"}, "small"),
        ({"draft_model": "none", "settings": ("draft.engine.model=other",)}, "other"),
    ],
)
def test_the_draft_model(fields: dict[str, Any], model: str | None) -> None:
    draft: Any = Configurations(ClusterSpec(**fields)).of("draft", {})
    assert (draft.engine and draft.engine.model) == model


@pytest.mark.parametrize(
    ("fields", "drafters"),
    [
        ({}, ("ngram", "dspark", "auto")),
        ({"draft_model": "demo@layers=6"}, ("ngram", "model", "dspark", "auto")),
        ({"drafter_checkpoint": "none"}, ("ngram",)),
        ({"model": "demo@layers=2"}, ("ngram",)),
    ],
)
def test_the_demo_model_has_a_drafter_of_its_own(fields: dict[str, Any], drafters: tuple[str, ...]) -> None:
    configurations = Configurations(ClusterSpec(**fields))
    draft: Any = configurations.of("draft", {})
    target: Any = configurations.of("target", {})
    assert draft.drafters == drafters
    assert (draft.default_drafter == "auto") == ("dspark" in drafters)
    assert target.projectors == ((str(SHIPPED["demo"]),) if "dspark" in drafters else ())


def test_weights_of_target_and_draft_model_are_chosen_apart() -> None:
    configurations = Configurations(
        ClusterSpec(draft_model="demo@layers=6", draft_weights="int4", settings=("target.engine.weights=int8",))
    )
    target: Any = configurations.of("target", {})
    draft: Any = configurations.of("draft", {})
    assert (target.engine.weights, draft.engine.weights) == ("int8", "int4")
    plain: Any = Configurations(ClusterSpec(draft_model="small", weights="int4")).of("draft", {})
    assert plain.engine.weights == ""
    with pytest.raises(InvalidRequest, match="draft_weights: expected a draft model to quantise, got 'int8'"):
        Configurations(ClusterSpec(draft_weights="int8")).check()


def test_pools_share_out_the_cores() -> None:
    one: Any = Configurations(ClusterSpec()).of("target", {})
    many: Any = Configurations(ClusterSpec(targets=64)).of("target", {})
    assert one.engine.threads >= many.engine.threads >= 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"settings": ("engine.dtype=float32",)}, "--set: expected target.KEY=VALUE"),
        ({"settings": ("target.engine.dtype=int8",)}, "target.engine.dtype: expected"),
        ({"settings": ("router.nonsense=1",)}, "router.nonsense: expected a known field"),
        ({"targets": 0}, "targets: expected a whole number, 1 to 64, got 0"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Configurations(ClusterSpec(**fields)).check()
    assert str(caught.value).startswith(words)
