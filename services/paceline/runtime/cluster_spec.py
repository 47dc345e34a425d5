"""What a local cluster is to be, and the configuration of each of its services that follows from it."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from paceline.runtime.child import Restart
from paceline.runtime.config import Closed, DraftConfig, RouterConfig, TargetConfig, load
from paceline.speculation.errors import InvalidRequest

KINDS: dict[str, type[Closed]] = {"target": TargetConfig, "draft": DraftConfig, "router": RouterConfig}
NO_MODEL = "none"

# Hidden-state drafters that come with Paceline, by the name of the model they were trained for.
SHIPPED = {"demo": Path(__file__).parents[1] / "drafters" / "shipped" / "SmolLM2-135M-Instruct-dspark"}


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """What to start. Everything else about a service goes into ``settings`` or the file."""

    drafts: int = 1
    targets: int = 1
    routers: int = 1
    """Router processes behind the one pair of ports."""
    model: str = "demo"
    draft_model: str | None = None
    """Runs draft workers with one beside their other drafters; None or `none` without."""
    drafter_checkpoint: str | Path | None = None
    """Folder of a hidden-state drafter of the model: targets keep its features, and draft workers take its drafts or
    those of n-gram lookup by default. `none` runs without one; by default the one that is shipped for the model."""
    dtype: str | None = None
    """Of both models; None for the services' default."""
    weights: str | None = None
    """Of the target: int8 or int4; None keeps them as they are."""
    draft_weights: str | None = None
    """Of the draft model."""
    threads: int | None = None
    """CPU threads of each worker; by default each pool shares out all cores, since draft and verify steps alternate."""
    http_port: int = 0
    """0 takes a free one."""
    grpc_port: int = 0
    """0 takes a free one."""
    config: str | None = None
    """YAML file with the sections target, draft and router; wins over the fields above."""
    settings: tuple[str, ...] = ()
    """SERVICE.KEY=VALUE; wins over the file."""
    restart: Restart = field(default_factory=Restart)
    """Of draft and target workers; a dead router is not restarted."""
    start_timeout_s: float = 300.0
    """For each process to get ready."""
    stop_grace_s: float = 30.0
    """From SIGTERM to SIGKILL; a router gives its Ray 20 s."""
    log_dir: Path | None = None
    """Logs and effective configurations; by default a temporary folder, removed after a run without failures."""
    commands: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {service: ("-m", f"paceline.{service}") for service in KINDS}
    )
    """Arguments of Python for each service: the seam for tests."""

    def __post_init__(self) -> None:
        for name, least in (("drafts", 0), ("targets", 1), ("routers", 1)):
            count = getattr(self, name)
            if not least <= count <= 64:
                raise InvalidRequest(name, expected=f"a whole number, {least} to 64", got=count)


class Configurations:
    """The configuration of each service: the specification's fields, then the file, then the settings."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._spec = spec
        self._sections: dict[str, Any] = load(_Sections, spec.config).model_dump() if spec.config else {}

    def check(self) -> None:
        """Raise InvalidRequest if any service's configuration is wrong."""
        for setting in self._spec.settings:
            service, dot, _ = setting.partition(".")
            if not dot or service not in KINDS:
                raise InvalidRequest("--set", expected="target.KEY=VALUE, draft.… or router.…", got=setting)
        for service in KINDS:
            self.of(service, {})

    def of(self, service: str, values: Mapping[str, Any]) -> Closed:
        """One service's configuration, with values that win over all else."""
        prefix = f"{service}."
        given = [*_flatten("", self._sections.get(service) or {})]
        given += [text.removeprefix(prefix) for text in self._spec.settings if text.startswith(prefix)]
        base = [f"{key}={json.dumps(value)}" for key, value in self._base(service).items()]
        if any(text.startswith("engine.") for text in given):
            base = [text for text in base if text != "engine=null"]  # a group can't be filled where there is none
        try:
            return load(KINDS[service], None, [*base, *given, *_flatten("", values)])
        except InvalidRequest as error:
            name = f"{service}.{error.field}"
            raise InvalidRequest(name, expected=error.expected, got=error.got, hint=error.hint) from error

    def models(self) -> tuple[str, ...]:
        """Names of the models the workers load."""
        engines = [getattr(self.of(service, {}), "engine", None) for service in KINDS]
        return tuple(dict.fromkeys(engine.model for engine in engines if engine is not None))

    def _base(self, service: str) -> dict[str, Any]:
        spec = self._spec
        if service == "router":
            return {"http_port": spec.http_port, "grpc_port": spec.grpc_port, "replicas": spec.routers}
        model = spec.model if service == "target" else spec.draft_model or NO_MODEL
        pool = max(1, spec.targets if service == "target" else spec.drafts)
        threads = spec.threads or max(1, _cores() // pool)
        extra = self._hidden(service, model, threads)
        if model == NO_MODEL:
            if spec.draft_weights is not None:
                raise InvalidRequest("draft_weights", expected="a draft model to quantise", got=spec.draft_weights)
            return {"engine": None, "drafters": ["ngram"], **extra}
        weights = spec.weights if service == "target" else spec.draft_weights
        options = {"engine.dtype": spec.dtype, "engine.weights": weights}
        given = {key: value for key, value in options.items() if value is not None}
        return {"engine.model": model, "engine.threads": threads, **given, **extra}

    def _hidden(self, service: str, draft_model: str, threads: int) -> dict[str, Any]:
        """What a hidden-state drafter adds to a worker's settings."""
        given = self._spec.drafter_checkpoint
        chosen = SHIPPED.get(self._spec.model) if given is None else given
        if chosen is None or str(chosen) == NO_MODEL:
            return {}
        folder = Path(chosen).expanduser().resolve()
        path = str(folder)
        if service == "target":
            return {"projectors": [path]}
        name = _drafter_name(folder)
        return {
            "drafters": ["ngram", *(["model"] if draft_model != NO_MODEL else []), name, "auto"],
            "default_drafter": "auto",
            "hidden.checkpoint": path,
            "hidden.target": self._spec.model,
            "hidden.threads": threads,
        }


def _drafter_name(folder: Path) -> str:
    """What the drafter in a folder is called; the worker that loads it checks the rest."""
    try:
        name = json.loads((folder / "config.json").read_text())["speculators_model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "a drafter's folder, with config.json and model.safetensors"
        raise InvalidRequest("drafter_checkpoint", expected=expected, got=str(folder), hint=repr(error)) from error
    return str(name)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def require_free_port(name: str, host: str, port: int) -> None:
    """Raise InvalidRequest if a port asked for is taken; 0 asks for any."""
    if port and not port_free(host, port):
        raise InvalidRequest(name, expected="a free port", got=port, hint="choose another, or 0 for any")


def port_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class _Sections(Closed):
    """The file ``ClusterSpec.config`` names."""

    target: dict[str, Any] = Field(default_factory=dict)
    draft: dict[str, Any] = Field(default_factory=dict)
    router: dict[str, Any] = Field(default_factory=dict)


def _flatten(prefix: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Nested values as dotted KEY=VALUE, so that a file changes single fields of a group."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}={json.dumps(value)}"
