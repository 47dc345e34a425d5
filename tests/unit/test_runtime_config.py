"""Configuration fails at start-up, naming the field; files and overrides say the same thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from paceline.runtime.config import Closed, DraftConfig, RouterConfig, TargetConfig, field_help, load, parse
from paceline.speculation.errors import InvalidRequest
from pydantic import ValidationError

KINDS: list[type[Closed]] = [DraftConfig, TargetConfig, RouterConfig]


def refused(kind: type[Closed], values: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(kind, values)
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_valid_and_survive_a_file(kind: type[Closed], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(kind().model_dump(mode="json")))
    assert load(kind, str(file)) == load(kind, None) == kind()


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_key_is_refused_with_the_known_ones(kind: type[Closed]) -> None:
    error = refused(kind, {"porrt": 1})
    assert error.field == "porrt"
    assert "telemetry" in error.expected


def test_an_unknown_nested_key_is_refused_with_its_neighbours() -> None:
    error = refused(DraftConfig, {"engine": {"threadz": 2}})
    assert error.field == "engine.threadz"
    assert "threads" in error.expected
    assert "ngram_min" not in error.expected
    assert "sample_ratio" in refused(RouterConfig, {"telemetry": {"x": 1}}).expected


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        (TargetConfig, {"port": 65536}, "port"),
        (TargetConfig, {"port": "http"}, "port"),
        (TargetConfig, {"max_draft_tokens": 65}, "max_draft_tokens"),
        (TargetConfig, {"engine": {"dtype": "int8"}}, "engine.dtype"),
        (TargetConfig, {"engine": {"weights": "int3"}}, "engine.weights"),
        (TargetConfig, {"engine": 3}, "engine"),
        (TargetConfig, {"session_ttl_s": float("nan")}, "session_ttl_s"),
        (RouterConfig, {"verify_deadline_ms": float("inf")}, "verify_deadline_ms"),
        (RouterConfig, {"targets": "127.0.0.1:1"}, "targets"),
        (RouterConfig, {"telemetry": {"sample_ratio": 1.5}}, "telemetry.sample_ratio"),
        (RouterConfig, {"replicas": None}, "replicas"),
        (DraftConfig, {"drafters": [1]}, "drafters.0"),
    ],
)
def test_a_malformed_value_is_refused_by_field(kind: type[Closed], values: dict[str, Any], field: str) -> None:
    assert refused(kind, values).field == field


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValidationError):
        DraftConfig().port = 1  # type: ignore[misc]


def test_overrides_win_and_are_yaml(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("port: 1\nhost: '::1'\nengine:\n  model: demo\n  threads: 2\n")
    overrides = ["port=2", "engine.threads=null", "telemetry.sample_ratio=0.5", "drafters=[ngram]"]
    config = load(DraftConfig, str(file), overrides)
    assert (config.port, config.host, config.drafters) == (2, "::1", ("ngram",))
    assert config.engine is not None
    assert (config.engine.model, config.engine.threads) == ("demo", None)
    assert config.telemetry.sample_ratio == 0.5
    assert load(DraftConfig, None, ["engine=null"]).engine is None
    assert (
        load(DraftConfig, None, ["engine.model=a=b"]).engine
        == load(DraftConfig, None, ['engine={"model": a=b}']).engine
    )


@pytest.mark.parametrize(
    "override", ["port", "=1", "port=[", "port=a: b: c", "engine=1\n--- 2", "port.x.y=1", "a..b=1"]
)
def test_a_broken_override_is_refused(override: str) -> None:
    with pytest.raises(InvalidRequest):
        load(DraftConfig, None, [override])


def test_an_override_inside_a_plain_value_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="group of fields"):
        load(DraftConfig, None, ["port=1", "port.x=2"])


@pytest.mark.parametrize("content", [b"- 1", b"a: [", b"\xff\xfe\x00", b"text", b"1: 2"])
def test_a_broken_file_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(InvalidRequest):
        load(DraftConfig, str(file))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere\.yaml"):
        load(DraftConfig, str(tmp_path / "nowhere.yaml"))


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.touch()
    assert load(DraftConfig, str(file)) == DraftConfig()


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_explained(kind: type[Closed]) -> None:
    lines = field_help(kind).splitlines()
    assert not [line for line in lines if "None" in line]
    assert len(lines) >= len(kind.model_fields)
    assert any("telemetry.otlp_endpoint" in line and '[""]' in line for line in lines)
