"""From a model's name to a running engine and its tokenizer's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paceline.engine import fake, models
from paceline.engine.interface import Engine
from paceline.engine.projection import Projector
from paceline.engine.quantised import scheme_of
from paceline.engine.tokenizer_files import tokenizer_files
from paceline.speculation.errors import InvalidRequest, Unsupported

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """A model and how it runs; the fields of ``runtime.config.EngineConfig``."""

    model: str  # demo, a folder, a GGUF file, a Hugging Face id, each with @layers=N; or fake[:options]
    dtype: str = "bfloat16"
    weights: str = ""  # int8 or int4, see quantised.py; empty keeps those of linear layers in dtype
    device: str = "cpu"
    threads: int | None = None  # CPU threads of a step; None leaves torch's default
    kv_tokens: int = 65536  # KV positions held for all sessions together
    row_tile: int | None = None  # rows of every matrix product; None is what suits the device
    deterministic: bool = True  # see TorchOptions
    model_id: str = ""  # the name tokens are attributed to; empty derives it from the model and its weights


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that is warm, and what turns text into its tokens."""

    engine: Engine
    tokenizer_files: dict[str, bytes]


def load_engine(
    spec: EngineSpec, progress: models.Progress | None = None, projectors: Sequence[Projector] = ()
) -> LoadedEngine:
    """Load a model, check it, measure it. ``projectors`` are those of the drafters it keeps context features for.

    Raises InvalidRequest or Unsupported for a model that cannot be served, Unavailable if it cannot be fetched now.
    """
    say = progress or (lambda line: None)
    scheme = scheme_of(spec.weights)
    if spec.model.split(":")[0] == fake.NAME:
        if scheme is not None:
            raise Unsupported("weights", got=spec.weights, hint="a fake model has none")
        options = fake.parse_options(spec.model)
        engine = fake.FakeEngine(
            options, kv_tokens=spec.kv_tokens, model_id=spec.model_id or spec.model, projectors=projectors
        )
        return LoadedEngine(engine, fake.fake_tokenizer_files())
    local = models.resolve(spec.model, progress)
    say(f"loading {local.model_id} from {local.folder}")
    return LoadedEngine(_load_torch(spec, local, say, projectors), tokenizer_files(local.folder))


def _load_torch(
    spec: EngineSpec, local: models.LocalModel, say: models.Progress, projectors: Sequence[Projector]
) -> Engine:
    # transformers takes seconds to import, and a fake engine has no use for it.
    from paceline.engine import numerics  # noqa: PLC0415
    from paceline.engine.torch_engine import TorchEngine, TorchOptions  # noqa: PLC0415

    if spec.threads:
        torch.set_num_threads(spec.threads)
    scheme = scheme_of(spec.weights)
    suffix = "" if scheme is None else f"@{scheme.name}"
    identity = numerics.fingerprint(local.folder, local.layers, scheme)
    model = load_model(local.folder, dtype=_dtype(spec.dtype), layers=local.layers)
    say("checking that logits do not depend on the batch")
    engine = TorchEngine(
        model,
        model_id=spec.model_id or local.model_id + suffix,
        fingerprint=identity,
        options=TorchOptions(
            kv_tokens=spec.kv_tokens,
            row_tile=spec.row_tile,
            device=spec.device,
            deterministic=spec.deterministic,
            weights=spec.weights,
        ),
        projectors=projectors,
    )
    curve = ", ".join(f"{rows} rows {1e3 * seconds:.0f} ms" for rows, seconds in engine.cost_curve())
    facts = engine.info.numerics
    say(f"products: {facts['matmul']}, attention: {facts['attention']}, layers fused: {facts['fused_layers']}")
    say(f"ready: numerics class {engine.info.numerics_class}, a step takes {curve}")
    return engine


def load_model(folder: Path, *, dtype: torch.dtype, layers: int | None = None) -> Any:
    """A folder's causal language model on the CPU, cut to its first ``layers`` layers if given.

    Raises Unsupported for quantised weights and for models transformers has no causal language model for,
    InvalidRequest if weights are missing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415  # see above
    from transformers.utils import logging  # noqa: PLC0415

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it reports layers left out, at length
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config: Any = AutoConfig.from_pretrained(str(folder))
    if getattr(config, "quantization_config", None) is not None:
        raise Unsupported(
            "model", got="quantised weights", hint="use a bfloat16 or float32 model; engine.weights quantises it"
        )
    if layers is not None:
        cut_layers(config, layers)
    auto: Any = AutoModelForCausalLM
    try:
        model, report = auto.from_pretrained(
            str(folder), config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except ValueError as error:  # "Unrecognized configuration class"
        raise Unsupported("model", got=config.model_type, hint="use a causal language model") from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would make them up
        raise InvalidRequest("model", expected="weights for every layer", got=f"none for {', '.join(missing[:3])}")
    return model


def cut_layers(config: Any, layers: int) -> None:
    """Keep the first ``layers`` layers. Raises InvalidRequest if the model has fewer."""
    text = config.get_text_config()
    if layers > text.num_hidden_layers:
        raise InvalidRequest("model", expected=f"at most @layers={text.num_hidden_layers}", got=f"@layers={layers}")
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):  # one entry per layer: which attend to a window only
        text.layer_types = text.layer_types[:layers]


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise InvalidRequest("dtype", expected=" or ".join(_DTYPES), got=name)
    return _DTYPES[name]
