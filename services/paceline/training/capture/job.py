"""The two phases of a capture over a loaded target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from paceline.cache.target import CacheSpec, Sample, TargetCacheWriter, seal
from paceline.drafters.hidden.config import default_layer_ids
from paceline.engine.interface import Engine, EngineInfo
from paceline.engine.loading import EngineSpec, LoadedEngine, load_engine
from paceline.runtime.text import TextCodec
from paceline.speculation.errors import InvalidRequest
from paceline.training.capture.answers import Answer, AnswerLog, load
from paceline.training.capture.batching import Batch
from paceline.training.capture.conversations import Conversation, read_conversations
from paceline.training.capture.dialogue import Ask, Dialogue
from paceline.training.capture.meter import Meter
from paceline.training.capture.options import Options
from paceline.training.capture.states import Reader, Script, scripts

LAYERS = 5  # as many as DeepSpec keeps

Say = Callable[[str], None]


def run(options: Options, say: Say) -> None:
    """Do what is asked. Raises InvalidRequest or Unsupported by name, and what loading a model raises."""
    loaded = load_engine(
        EngineSpec(
            model=options.model, dtype=options.dtype, weights=options.weights, device=options.device,
            threads=options.threads, kv_tokens=options.kv_tokens,
        ),
        say,
    )  # fmt: skip
    if options.asks:
        answer(options, loaded, say)
    if options.cache is not None:
        capture(options, loaded.engine, say)


def settings(options: Options, engine: Engine) -> dict[str, object]:
    """All that answers depend on, beside their prompts."""
    info = engine.info
    return {
        "model": info.model_id, "fingerprint": info.fingerprint, "numerics_class": info.numerics_class,
        **options.recipe.to_json(),
    }  # fmt: skip


def answer(options: Options, loaded: LoadedEngine, say: Say) -> None:
    """Phase one: append an answer to every turn of this part's prompts to its answers file."""
    engine, codec = loaded.engine, TextCodec(loaded.tokenizer_files)
    conversations = read_conversations(options.prompts)[options.part :: options.parts]
    with AnswerLog(options.answers_of(options.part), settings(options, engine)) as log:
        known = {each.place: each for each in log.answers}
        talks = _Talks(options, codec, engine, conversations, known)
        batch = Batch(engine, sessions=options.sessions, step_tokens=options.step_tokens)
        with Meter("answers", talks.turns, done=talks.done) as meter:
            for each in _answers(talks, batch):
                log.append(each)
                meter.add(done=1 + each.last * talks.unasked(each), tokens=len(each.tokens))
    if talks.no_room:
        say(f"{talks.no_room} prompts are longer than --max-length or the model's context and were left out")


def _answers(talks: _Talks, batch: Batch) -> Iterator[Answer]:
    """Answers as they are finished."""
    coming = iter(talks)
    under_way: dict[str, Dialogue] = {}

    def put(dialogue: Dialogue, ask: Ask, *, first: bool = False) -> None:
        under_way[ask.session_id] = dialogue
        batch.put(ask, first=first)

    while True:
        while batch.wants and (found := next(coming, None)) is not None:
            put(*found)
        if not batch.busy:
            return
        for ask, tokens in batch.step():
            dialogue = under_way.pop(ask.session_id)
            yield dialogue.take(ask, tokens)
            if (following := dialogue.ask()) is not None:
                put(dialogue, following, first=True)


class _Talks:
    """The dialogues of a part, as far as they are still to be led."""

    def __init__(
        self,
        options: Options,
        codec: TextCodec,
        engine: Engine,
        conversations: list[Conversation],
        known: dict[tuple[str, int, int], Answer],
    ) -> None:
        recipe = options.recipe
        self._talks = [(each, choice) for each in conversations for choice in recipe.choices(each)]
        self._lengths = {each.digest: len(each.turns) for each in conversations}
        self._recipe, self._codec, self._known = recipe, codec, known
        self._room = min(recipe.max_length, engine.info.context_length)
        self._ends = engine.info.eos_token_ids
        self.turns = sum(len(each.turns) for each, _ in self._talks)
        self.done = sum(
            1 + each.last * self.unasked(each) for each in known.values() if each.conversation in self._lengths
        )
        self.no_room = 0

    def unasked(self, answer: Answer) -> int:
        """Turns after the last one that is answered: there is no room for them."""
        return self._lengths[answer.conversation] - answer.turn - 1

    def __iter__(self) -> Iterator[tuple[Dialogue, Ask]]:
        for conversation, choice in self._talks:
            dialogue = Dialogue(
                conversation, choice, recipe=self._recipe, codec=self._codec, room=self._room, ends=self._ends
            )
            while (known := self._known.get((conversation.digest, choice, dialogue.turn))) is not None:
                dialogue.resume(known)
            ask = dialogue.ask()
            if ask is not None:
                yield dialogue, ask
            elif dialogue.turn == 0:
                self.no_room += 1


@dataclass(slots=True)
class _Tally:
    samples: int = 0
    own: int = 0  # tokens of the target's


def capture(options: Options, engine: Engine, say: Say) -> None:
    """Phase two: write a sample of every whole conversation in this part's answers file that is not in the cache."""
    assert options.cache is not None
    path = options.answers_of(options.part)
    found = load(path)
    _require_same_target(path, found.settings, engine.info, say)
    layers = options.layers or default_layer_ids(engine.info.layers, LAYERS)
    spec = spec_of(options, engine, layers, dict(found.settings))
    reader = Reader(engine, layers, step_tokens=options.step_tokens, max_length=spec.max_length)
    wanted = [each for each in scripts(found.answers, part=options.part) if _worth(each, spec)]
    tally = _Tally()
    with TargetCacheWriter(
        options.cache, spec, writer=options.part, roots=options.roots, shard_bytes=options.shard_bytes
    ) as writer:
        missing = [each for each in wanted if each.key not in writer]
        with Meter("states", len(wanted), done=len(wanted) - len(missing)) as meter:
            for sample in reader.samples(missing):
                writer.write(sample)
                _count(tally, sample)
                meter.add(done=1, tokens=len(sample.input_ids))
    sealed = seal(options.cache)
    say(
        f"{options.cache}: {sealed.samples} samples of {sealed.tokens:,} tokens in {sealed.shards} shards, "
        f"{tally.samples} of them with {tally.own:,} tokens of the target's own new"
    )


def _require_same_target(path: Path, made: Mapping[str, object], info: EngineInfo, say: Say) -> None:
    """Raises InvalidRequest if another target gave the answers; one that computes otherwise is told of."""
    if made.get("fingerprint") != info.fingerprint:
        hint = f"{path} holds the answers of {made.get('model')}"
        raise InvalidRequest("fingerprint", expected=str(made.get("fingerprint")), got=info.fingerprint, hint=hint)
    if made.get("numerics_class") != info.numerics_class:
        say(f"answers are of numerics class {made.get('numerics_class')}: states will differ from them by rounding")


def spec_of(options: Options, engine: Engine, layers: tuple[int, ...], made: dict[str, object]) -> CacheSpec:
    """What the cache says of itself; the same for all parts."""
    info = engine.info
    return CacheSpec(
        target_layer_ids=layers,
        hidden_size=info.hidden_size,
        target_model_name_or_path=options.model,
        source_jsonl_paths=tuple(options.answers_of(part).name for part in range(options.parts)),
        chat_template=info.model_id,
        max_length=int(str(made["max_length"])),
        min_loss_tokens=options.min_loss_tokens,
        more={"paceline_answers": made, "paceline_states": {"numerics_class": info.numerics_class}},
    )


def _worth(script: Script, spec: CacheSpec) -> bool:
    return int(script.loss_mask(spec.max_length).sum()) >= spec.min_loss_tokens


def _count(tally: _Tally, sample: Sample) -> None:
    tally.samples += 1
    tally.own += int(sample.loss_mask.sum())
