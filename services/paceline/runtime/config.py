"""Configuration of every service: closed models, units in names, unknown keys and malformed values fail at start-up.

A service takes ``--config FILE`` (YAML) and ``--set key=value`` overrides; both go through ``load``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paceline.speculation.errors import InvalidRequest


class Closed(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Telemetry(Closed):
    """Where spans go."""

    otlp_endpoint: str = Field("", pattern=r"^(https?://[^\s/]+/?)?$")
    """OTLP/gRPC endpoint, such as http://127.0.0.1:4317 (https:// for TLS); empty sends nothing."""
    sample_ratio: float = Field(1.0, ge=0, le=1)
    """Share of requests a router traces when the caller brings no trace context; workers follow it."""


class EngineConfig(Closed):
    """A model and how it runs."""

    model: str = "demo"
    """A Hugging Face id, a folder, a GGUF file, `demo`, any of these with `@layers=N`, or `fake[:options]`."""
    model_id: str = ""
    """The name tokens are attributed to; by default derived from the model."""
    dtype: str = Field("bfloat16", pattern="^(float32|bfloat16|float16)$")
    """Type of activations and KV state, and of weights that are not quantised."""
    weights: str = Field("", pattern="^(int8|int4)?$")
    """int8 or int4 quantises the weights of linear layers when they are loaded; another model, by another name."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    threads: int | None = Field(None, ge=1, le=512)
    """CPU threads of a step; by default all cores. Part of the numerics class."""
    kv_tokens: int = Field(65536, ge=16)
    """KV positions held for all sessions together."""
    deterministic: bool = True
    """Whether a row's bits are the same whatever is computed beside it. Without it, products take whatever number of
    rows comes, and a near-tie may fall either way. Part of the numerics class."""
    row_tile: int | None = Field(None, ge=1, le=256)
    """Rows of every matrix product; by default what suits the device. Part of the numerics class."""


class Worker(Closed):
    """What draft workers and target verifiers share."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(0, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    max_sessions: int = Field(256, ge=1)
    """Sessions open at once; further ones are refused."""
    max_queue: int = Field(1024, ge=1)
    """Rounds waiting at once, of all routers; further ones are refused."""
    session_ttl_s: float = Field(300.0, gt=0)
    """A session nobody asked about for this long is released."""
    telemetry: Telemetry = Telemetry()


class CaptureConfig(Closed):
    """Hidden states kept of what a target serves, as target caches to train drafters on."""

    folder: str = ""
    """Folder of the caches, one after another; empty keeps nothing."""
    tenants: tuple[str, ...] = ()
    """Tenants whose sessions may be kept; `*` is everybody."""
    share: float = Field(1.0, gt=0, le=1)
    """Share of their sessions that is kept."""
    retention_bytes: int = Field(10 << 30, ge=1 << 20)
    """Size of the folder, at most; the oldest cache goes when it is full."""
    memory_bytes: int = Field(256 << 20, ge=1 << 20)
    """Hidden states of sessions under way, and again of those that wait to be written; beyond it they are dropped."""
    layers: tuple[int, ...] = ()
    """Layers kept beside the last hidden states, -1 for the embedding; by default five, spread as DeepSpec does."""


class TargetConfig(Worker):
    """A target verifier."""

    engine: EngineConfig = EngineConfig()
    step_tokens: int = Field(256, ge=2)
    """Tokens of one step at most; longer prompts are prefilled in chunks."""
    projectors: tuple[str, ...] = ()
    """Folders of hidden-state drafters whose context features are kept, so that draft workers may ask for them."""
    share_prefixes: bool = True
    """Whether sessions of a tenant start on what others computed of the same tokens; benches of prefill want it off."""
    max_draft_tokens: int = Field(32, ge=0, le=64)
    """Draft tokens of one round that are verified at most."""
    capture: CaptureConfig = CaptureConfig()


class HiddenConfig(Closed):
    """A hidden-state drafter: `dspark`, `dflash` or `eagle3`, whichever its folder says."""

    checkpoint: str = ""
    """Its folder, with config.json and model.safetensors."""
    target: str = ""
    """The model it was trained for, whose embedding and head it borrows; by default what its config.json says."""
    dtype: str = Field("bfloat16", pattern="^(float32|bfloat16)$")
    """Type of weights and contexts."""
    threads: int | None = Field(None, ge=1, le=512)
    """CPU threads of a pass; by default all cores. One setting for the process: the draft model's wins."""
    context_tokens: int = Field(65536, ge=256)
    """Context positions held for all sessions together; the least recently drafted for are forgotten first."""


class DraftConfig(Worker):
    """A draft worker."""

    engine: EngineConfig | None = EngineConfig(model="demo@layers=6")
    """The draft model of the `model` drafter; null runs without one."""
    drafters: tuple[str, ...] = ("ngram", "model", "auto")
    """Drafters offered. `auto` takes, per session and round, n-gram lookup or the other one, whichever gains more."""
    default_drafter: str = "ngram"
    """The drafter of sessions that name none."""
    hidden: HiddenConfig = HiddenConfig()
    """What the drafters `dspark`, `dflash` and `eagle3` need."""
    max_draft_tokens: int = Field(32, ge=1, le=64)
    """K at most."""
    ngram_min: int = Field(2, ge=1)
    """Shortest suffix the ngram drafter matches."""
    ngram_max: int = Field(5, ge=1)
    """Longest suffix the ngram drafter matches."""


class RouterConfig(Closed):
    """A router, and the front door it stands behind."""

    targets: tuple[str, ...] = ()
    """Addresses of target verifiers, host:port."""
    drafts: tuple[str, ...] = ()
    """Addresses of draft workers, host:port."""
    http_host: str = "127.0.0.1"
    """Address of the OpenAI-compatible HTTP ingress."""
    http_port: int = Field(8000, ge=0, le=65535)
    """Port of the OpenAI-compatible HTTP ingress."""
    grpc_host: str = "127.0.0.1"
    """Address of the gRPC ingress."""
    grpc_port: int = Field(9000, ge=0, le=65535)
    """Port of the gRPC ingress."""
    replicas: int = Field(1, ge=1, le=64)
    """Router processes."""
    api_keys_file: str = ""
    """YAML file, key -> tenant. Empty lets everyone in, which is refused unless both ingresses are on loopback."""
    max_sessions: int = Field(256, ge=1)
    """Answers under way at once, per router."""
    max_waiting: int = Field(256, ge=0)
    """Requests waiting to be admitted, per router; further ones get RESOURCE_EXHAUSTED at once."""
    max_tokens_limit: int = Field(4096, ge=1)
    """Most tokens a request may ask for; also the default, bounded by the context."""
    default_draft_tokens: int = Field(8, ge=0, le=64)
    """K at most when the request names none; how many pay is measured."""
    default_drafter: str = ""
    """The drafter when the request names none; empty leaves it to the draft worker."""
    draft_deadline_ms: float = Field(100.0, gt=0)
    """A round waits for its draft at most this long, then goes without."""
    verify_deadline_ms: float = Field(30_000.0, gt=0)
    """A verdict later than this counts as a lost verifier."""
    cohorts: int = Field(0, ge=0, le=2)
    """Sets of sessions verified in turn: 1 is lockstep, 2 overlaps; 0 chooses from measured times."""
    request_timeout_s: float = Field(600.0, gt=0)
    """Deadline of a request that brings none."""
    reconnect_max_s: float = Field(2.0, gt=0)
    """Longest pause between attempts to reach a lost worker."""
    telemetry: Telemetry = Telemetry()


ConfigT = TypeVar("ConfigT", bound=Closed)


def parse(kind: type[ConfigT], values: Mapping[str, Any], *, source: str = "configuration") -> ConfigT:
    """Validate values.

    Raises:
        InvalidRequest: naming the first wrong field, what was expected and what came.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or source
        hint = f"in {source}"
        if first["type"] == "extra_forbidden":
            names = ", ".join(sorted(type(_group(kind(), first["loc"])).model_fields))
            raise InvalidRequest(field, expected=f"a known field ({names})", got=field, hint=hint) from error
        raise InvalidRequest(field, expected=str(first["msg"]), got=first["input"], hint=hint) from error


def load(kind: type[ConfigT], path: str | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file (none: defaults) and apply ``dotted.key=yaml-value`` overrides.

    Raises:
        InvalidRequest: the file is missing or broken, or a field is wrong.
    """
    values = _read(path) if path else {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InvalidRequest("--set", expected="KEY=VALUE", got=override)
        _assign(values, key.split("."), _override(override, text))
    return parse(kind, values, source=path or "the command line")


def field_help(kind: type[Closed]) -> str:
    """Every field of a configuration, one a line: dotted name, what it is, default."""
    return "\n".join(_field_lines(kind(), ""))


def _field_lines(defaults: Closed, prefix: str) -> Iterator[str]:
    for name, field in type(defaults).model_fields.items():
        default = getattr(defaults, name)
        if isinstance(default, Closed):
            yield f"  {prefix}{name}  {field.description or 'a group of fields'}"
            yield from _field_lines(default, f"{prefix}{name}.")
        else:
            yield f"  {prefix}{name}  {field.description} [{json.dumps(default)}]"


def _group(group: Closed, location: Sequence[int | str]) -> Closed:
    """The group of fields that a field, known or not, belongs to."""
    for part in location[:-1]:
        inner = getattr(group, str(part), None)
        if not isinstance(inner, Closed):
            break
        group = inner
    return group


def _override(override: str, text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidRequest("--set", expected="KEY=VALUE with a YAML value", got=override) from error


def _read(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest("--config", expected="a readable YAML file", got=path, hint=str(error)) from error
    except yaml.YAMLError as error:
        raise InvalidRequest("--config", expected="valid YAML", got=path, hint=str(error)) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InvalidRequest("--config", expected="a YAML mapping", got=type(values).__name__, hint=f"in {path}")
    return values


def _assign(values: dict[str, Any], keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise InvalidRequest("--set", expected=f"{key} to be a group of fields", got=inner)
        values = inner
    values[keys[-1]] = value
