"""From a configuration to drafters and their description."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from paceline.drafters.choice import NAME as AUTO
from paceline.drafters.choice import chooser
from paceline.drafters.interface import Drafter, FeatureDrafter, SharedDrafter
from paceline.drafters.ngram import NgramDrafter
from paceline.runtime import text
from paceline.runtime.command import Progress
from paceline.runtime.config import DraftConfig
from paceline.runtime.server import MAX_MESSAGE_BYTES
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import PROTOCOL_VERSION, SAMPLER_VERSION
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2 as pb


@dataclass(frozen=True, slots=True)
class Offered:
    """A drafter that is ready, and what it tells about its model."""

    drafter: Drafter
    model: common.ModelDescription
    kv_tokens: int = 0

    @property
    def has_engine(self) -> bool:
        """Whether it must run in the thread that made it."""
        return self.kv_tokens > 0


def assemble(config: DraftConfig, progress: Progress) -> list[Offered]:
    """Make the configured drafters; the engine is loaded only if one of them needs it.

    Raises:
        InvalidRequest: an unknown drafter or model, or settings that contradict each other.
        Unsupported, Unavailable: see ``load_engine``.
    """
    if not config.drafters:
        raise InvalidRequest("drafters", expected=f"one or more of {', '.join(_NAMES)}", got=[])
    for name in config.drafters:
        if name not in _NAMES:
            raise InvalidRequest("drafters", expected=f"names among {', '.join(_NAMES)}", got=name)
    if len(set(config.drafters)) != len(config.drafters):
        raise InvalidRequest("drafters", expected="each name once", got=list(config.drafters))
    if config.default_drafter not in config.drafters:
        expected = f"one of the drafters offered ({', '.join(config.drafters)})"
        raise InvalidRequest("default_drafter", expected=expected, got=config.default_drafter)
    offered = [_MAKERS[name](config, progress) for name in config.drafters if name != AUTO]
    return _with_choice(config, offered) if AUTO in config.drafters else offered


def describe(config: DraftConfig, offered: list[Offered], incarnation: str) -> pb.DraftDescription:
    """The answer to Describe."""
    return pb.DraftDescription(
        protocol_version=PROTOCOL_VERSION,
        sampler_version=SAMPLER_VERSION,
        incarnation=incarnation,
        limits=common.WorkerLimits(
            max_sessions=config.max_sessions,
            max_queue=config.max_queue,
            max_draft_tokens=config.max_draft_tokens,
            kv_tokens=sum(each.kv_tokens for each in offered),
            max_message_bytes=MAX_MESSAGE_BYTES,
        ),
        drafters=[_described(name, each) for each in offered for name in _names(each.drafter)],
        default_drafter=config.default_drafter,
    )


def _described(name: str, offered: Offered) -> pb.DrafterDescription:
    drafter = offered.drafter
    told = pb.DrafterDescription(name=name, model=offered.model, needs_features=drafter.needs_features)
    if isinstance(drafter, FeatureDrafter):
        told.projector, told.feature_width = drafter.projector, drafter.feature_width
    return told


def _names(drafter: Drafter) -> Iterator[str]:
    yield drafter.name
    if isinstance(drafter, SharedDrafter):
        yield from drafter.others


def _with_choice(config: DraftConfig, offered: list[Offered]) -> list[Offered]:
    """The best of the models, one on the target's hidden states if there is one, drafts for ``auto`` as well."""
    models = [each for each in offered if each.drafter.name != NgramDrafter.name]
    if not models:
        expected = "a drafter beside ngram for auto to choose from"
        raise InvalidRequest("drafters", expected=expected, got=list(config.drafters))
    best = max(models, key=lambda each: each.drafter.needs_features)
    choice = chooser(best.drafter, NgramDrafter(config.ngram_min, config.ngram_max))
    return [replace(each, drafter=choice) if each is best else each for each in offered]


def _ngram(config: DraftConfig, progress: Progress) -> Offered:
    drafter = NgramDrafter(config.ngram_min, config.ngram_max)
    progress(f"drafter ngram: suffixes of {config.ngram_min} to {config.ngram_max} tokens")
    # No tokenizer fingerprint: it copies token ids, whatever they mean.
    return Offered(drafter, common.ModelDescription(model_id=drafter.model_id))


def _model(config: DraftConfig, progress: Progress) -> Offered:
    if config.engine is None:
        raise InvalidRequest("engine", expected="a model for the drafter `model`", got=None)
    # Loading torch takes seconds, and an ngram worker has no use for it.
    from paceline.drafters.model import ModelDrafter  # noqa: PLC0415
    from paceline.engine.grammar import grammars_of  # noqa: PLC0415
    from paceline.engine.loading import EngineSpec, load_engine  # noqa: PLC0415

    loaded = load_engine(EngineSpec(**config.engine.model_dump()), progress)
    info = loaded.engine.info
    progress(f"drafter model: {info.model_id}, {info.kv_tokens} KV tokens")
    model = common.ModelDescription(
        model_id=info.model_id,
        fingerprint=info.fingerprint,
        numerics_class=info.numerics_class,
        numerics=info.numerics,
        vocab_size=info.vocab_size,
        context_length=info.context_length,
        tokenizer_fingerprint=text.fingerprint(loaded.tokenizer_files),
        eos_token_ids=info.eos_token_ids,
    )
    grammars = grammars_of(loaded.tokenizer_files, eos=info.eos_token_ids, vocab_size=info.vocab_size)
    return Offered(ModelDrafter(loaded.engine, grammars=grammars), model, info.kv_tokens)


def _hidden(name: str, config: DraftConfig, progress: Progress) -> Offered:
    given = config.hidden
    if not given.checkpoint:
        raise InvalidRequest("hidden.checkpoint", expected=f"a folder for the drafter `{name}`", got="")
    import torch  # noqa: PLC0415  # see above

    from paceline.drafters.hidden.checkpoint import read_config  # noqa: PLC0415
    from paceline.drafters.hidden.loading import load_drafter  # noqa: PLC0415
    from paceline.engine import models  # noqa: PLC0415

    folder = Path(given.checkpoint).expanduser()
    found = read_config(folder)
    if found.drafter != name:
        raise InvalidRequest("hidden.checkpoint", expected=f"a {name} drafter", got=f"{found.drafter} in {folder}")
    target = given.target or found.target_model
    if not target:
        raise InvalidRequest("hidden.target", expected="the model the drafter was trained for", got="")
    if given.threads and "model" not in config.drafters:
        torch.set_num_threads(given.threads)
    dtype = torch.float32 if given.dtype == "float32" else torch.bfloat16
    loaded = load_drafter(folder, models.resolve(target, progress), tokens=given.context_tokens, dtype=dtype)
    drafter = loaded.drafter
    progress(f"drafter {name}: {folder} for {target}, up to {found.draft_tokens} tokens, {loaded.kernels} kernels")
    model = common.ModelDescription(
        model_id=drafter.model_id,
        vocab_size=found.vocab_size,
        context_length=found.max_position_embeddings,
        tokenizer_fingerprint=text.fingerprint(loaded.tokenizer_files),
    )
    return Offered(drafter, model, given.context_tokens)


_MAKERS: dict[str, Callable[[DraftConfig, Progress], Offered]] = {
    "ngram": _ngram,
    "model": _model,
    "dspark": partial(_hidden, "dspark"),
    "dflash": partial(_hidden, "dflash"),
    "eagle3": partial(_hidden, "eagle3"),
}
_NAMES = (*_MAKERS, AUTO)
