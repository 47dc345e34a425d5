"""From a configuration to a verifier over a loaded engine, and its description."""

from __future__ import annotations

from pathlib import Path

from paceline.drafters.hidden.loading import read_projector
from paceline.engine.grammar import Grammars, grammars_of
from paceline.engine.interface import EngineInfo
from paceline.engine.loading import EngineSpec, LoadedEngine, load_engine
from paceline.engine.projection import Projector
from paceline.runtime import text
from paceline.runtime.command import Progress
from paceline.runtime.config import TargetConfig
from paceline.runtime.server import MAX_MESSAGE_BYTES
from paceline.speculation.errors import InvalidRequest, Unsupported
from paceline.speculation.messages import PROTOCOL_VERSION, SAMPLER_VERSION
from paceline.target.sessions import Limits
from paceline.target.verifier import Verifier
from paceline.v1 import common_pb2 as common
from paceline.v1 import target_pb2 as pb


def load(config: TargetConfig, progress: Progress) -> LoadedEngine:
    """Load the target. Raises what ``load_engine`` raises, and InvalidRequest for a projector that does not fit it."""
    projectors = [_projector(folder) for folder in config.projectors]
    if len({each.fingerprint for each in projectors}) < len(projectors):
        raise InvalidRequest("projectors", expected="each projector once", got=list(config.projectors))
    for folder, each in zip(config.projectors, projectors, strict=True):
        progress(f"projector {each.fingerprint}: layers {', '.join(map(str, each.layers))}, of {folder}")
    loaded = load_engine(EngineSpec(**config.engine.model_dump()), progress, projectors)
    if not config.engine.weights:  # a quantised target is another model, near enough to draft for
        for folder, each in zip(config.projectors, projectors, strict=True):
            _require_fitting(folder, each, loaded.engine.info)
    return loaded


def _require_fitting(folder: str, projector: Projector, info: EngineInfo) -> None:
    """Raises InvalidRequest if a drafter was trained for another target."""
    if projector.target not in {"", info.fingerprint}:
        expected, got = f"drafters of {info.model_id} ({info.fingerprint[:12]})", projector.target[:12]
        raise InvalidRequest("projectors", expected=expected, got=f"{folder}, of another target ({got})")


def _projector(folder: str) -> Projector:
    try:
        return read_projector(Path(folder).expanduser())
    except (InvalidRequest, Unsupported) as error:
        raise InvalidRequest(
            "projectors", expected="folders of hidden-state drafters", got=folder, hint=str(error)
        ) from error


def verifier_for(config: TargetConfig, loaded: LoadedEngine, incarnation: str) -> Verifier:
    """The verifier of a loaded target. Raises InvalidRequest if its tokenizer is broken."""
    codec = text.TextCodec(loaded.tokenizer_files)
    limits = Limits(
        max_sessions=config.max_sessions,
        max_queue=config.max_queue,
        step_tokens=config.step_tokens,
        max_draft_tokens=config.max_draft_tokens,
        session_ttl_s=config.session_ttl_s,
        share_prefixes=config.share_prefixes,
    )
    engine = loaded.engine
    return Verifier(engine, engine.info, limits=limits, incarnation=incarnation, detokenizer=codec.detokenizer)


def compiler_for(loaded: LoadedEngine) -> Grammars:
    """What compiles grammars for a loaded target."""
    info = loaded.engine.info
    return grammars_of(loaded.tokenizer_files, eos=info.eos_token_ids, vocab_size=info.vocab_size)


def describe(verifier: Verifier, loaded: LoadedEngine) -> pb.TargetDescription:
    """The answer to Describe."""
    info, limits = verifier.info, verifier.limits
    return pb.TargetDescription(
        protocol_version=PROTOCOL_VERSION,
        sampler_version=SAMPLER_VERSION,
        incarnation=verifier.incarnation,
        limits=common.WorkerLimits(
            max_sessions=limits.sessions,
            max_queue=limits.max_queue,
            max_draft_tokens=limits.max_draft_tokens,
            kv_tokens=info.kv_tokens,
            max_message_bytes=MAX_MESSAGE_BYTES,
        ),
        model=common.ModelDescription(
            model_id=info.model_id,
            fingerprint=info.fingerprint,
            numerics_class=info.numerics_class,
            numerics=info.numerics,
            vocab_size=info.vocab_size,
            context_length=info.context_length,
            tokenizer_fingerprint=text.fingerprint(loaded.tokenizer_files),
            eos_token_ids=info.eos_token_ids,
        ),
        cost_curve=[common.CostPoint(tokens=rows, seconds=seconds) for rows, seconds in loaded.engine.cost_curve()],
        projectors=list(info.features),
    )
