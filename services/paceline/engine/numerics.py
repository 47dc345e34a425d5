"""Everything that fixes the bits of a logit, as facts and as one hash: the numerics class."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
import transformers

from paceline.engine import models
from paceline.engine.grammar import VERSION as GRAMMAR_VERSION
from paceline.engine.machine import processor
from paceline.engine.quantised import Scheme
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.sampling import SAMPLER_VERSION

_NOT_NUMERIC = {"transformers_version", "_name_or_path", "_model_name_or_path", "_commit_hash"}
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_fp16")
_CHUNK_BYTES = 1 << 22


def fingerprint(folder: Path, layers: int | None = None, scheme: Scheme | None = None) -> str:
    """SHA-256 over a model folder's weights and configuration, over how many of its layers are kept, and over how they
    are quantised.

    Reading the weights is done once per state of the files; the result is kept in Paceline's cache.
    Raises InvalidRequest if the folder has no safetensors weights.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InvalidRequest(
            "model", expected="a folder with *.safetensors weights", got=str(folder), hint="convert it to safetensors"
        )
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
    config = _canonical_config(folder)
    key = hashlib.sha256(json.dumps([stats, config]).encode()).hexdigest()
    kept = models.cache_root() / "fingerprints" / key
    if kept.is_file():
        whole = kept.read_text()
    else:
        whole = _hash_files(weights, config)
        kept.parent.mkdir(parents=True, exist_ok=True)
        staged = kept.with_suffix(f".{os.getpid()}")
        staged.write_text(whole)
        staged.replace(kept)
    for change in (None if layers is None else f"layers={layers}", scheme):
        if change is not None:
            whole = hashlib.sha256(f"{whole}@{change}".encode()).hexdigest()
    return whole


def _canonical_config(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    return json.dumps({name: config[name] for name in sorted(config) if name not in _NOT_NUMERIC}, sort_keys=True)


def _hash_files(paths: list[Path], config: str) -> str:
    digest = hashlib.sha256(config.encode())
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def device_facts(device: torch.device) -> dict[str, str]:
    """The kind of machine kernels choose their code by."""
    if device.type == "cuda":
        return {"device": "cuda", "device_name": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    cpu = processor()
    return {
        "device": device.type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_vendor": cpu.vendor,  # the maths library chooses kernels by it
        "cpu_flags": " ".join(flag for flag in _CPU_FLAGS if flag in cpu.flags),
        "threads": str(torch.get_num_threads()),
    }


def facts(*, fingerprint: str, dtype: torch.dtype, device: torch.device, engine: dict[str, str]) -> dict[str, str]:
    """The facts behind a numerics class. ``engine``: those of how it runs a model."""
    return {
        "weights": fingerprint,
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tensor_parallel": "1",
        **engine,
        "sampler": SAMPLER_VERSION,
        "grammar": GRAMMAR_VERSION,
        **device_facts(device),
    }


def numerics_class(facts: dict[str, str]) -> str:
    """A short hash over the facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
