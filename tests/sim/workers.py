"""The real cores of both workers under virtual time: no threads, no sockets, steps as long as they are told to be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from paceline.draft.worker import DraftWorker
from paceline.drafters.choice import chooser
from paceline.drafters.interface import Drafter, FeatureDrafter
from paceline.drafters.model import ModelDrafter
from paceline.drafters.ngram import NgramDrafter
from paceline.engine.fake import FakeEngine, FakeOptions, fake_tokenizer_files
from paceline.engine.interface import FeatureRows, Slice, StepPlan, StepResult
from paceline.engine.projection import Projector
from paceline.router.pairing import DrafterInfo, DraftInfo, TargetInfo
from paceline.runtime.text import TextCodec
from paceline.speculation.messages import DraftResult, DraftTask, SessionOpen, StepReport, VerifyResult, VerifyTask
from paceline.speculation.sampling import Row, sample
from paceline.target.answer import resume
from paceline.target.feeds import Rows
from paceline.target.sessions import Limits
from paceline.target.verifier import Verifier

from tests.sim.world import World

OPTIONS = FakeOptions(seed=3, spread=2.0, eos=0.01)
GUESS = FakeOptions(seed=3, spread=2.0, eos=0.01, quality=0.8)
CONTEXT = 512


@functools.cache
def codec() -> TextCodec:
    return TextCodec(fake_tokenizer_files())


@dataclass(frozen=True, slots=True)
class Cost:
    """What a verify step takes."""

    step_s: float = 0.004
    row_s: float = 0.0001

    def seconds(self, rows: int) -> float:
        return self.step_s + self.row_s * rows


class SimEngine(FakeEngine):
    """The fake engine, remembering what it sampled: a row's sample is a function of its context and coordinates."""

    _drawn: ClassVar[dict[tuple[object, ...], int]] = {}

    def step(self, plan: StepPlan) -> StepResult:
        logits = self.forward(plan)
        keys, rows = [], []
        for piece in plan.slices:
            tokens = self.held(piece.session_id)
            for index in range(piece.samples):
                end, position = piece.end - piece.samples + 1 + index, piece.first_noise_position + index
                context = tokens[max(0, end - self.options.order) : end]
                keys.append((self.options, context, piece.sampling, position, piece.choice))
                rows.append(Row(piece.sampling, position, piece.choice))
        new = [index for index, key in enumerate(keys) if key not in self._drawn]
        if new:
            drawn = sample(logits[new], [rows[index] for index in new]).tolist()
            self._drawn.update(zip((keys[index] for index in new), drawn, strict=True))
        found = iter([self._drawn[key] for key in keys])
        samples = tuple(tuple(next(found) for _ in range(piece.samples)) for piece in plan.slices)
        return StepResult(samples, 0.0)


def fake_target(projectors: Sequence[Projector] = ()) -> FakeEngine:
    return SimEngine(OPTIONS, sleep=None, projectors=projectors)


class SimTarget:
    """A target verifier. ``send`` takes results for a router id."""

    def __init__(
        self,
        world: World,
        address: str,
        send: Callable[[str, list[VerifyResult], StepReport], None],
        cost: Cost,
        broken_steps: float,
        *,
        projectors: Sequence[Projector] = (),
    ) -> None:
        self.world, self.address, self._send, self._cost = world, address, send, cost
        self._projectors = tuple(projectors)
        self.pump: Callable[[], None] = lambda: None  # carries features on
        self._broken_steps = broken_steps  # share of steps that fail
        self.life = 0  # grows with every crash; things planned in an earlier life don't happen
        self.alive = False
        self.start()

    def start(self) -> None:
        self.alive, self.life = True, self.life + 1
        self._stepping = False
        self.engine = fake_target(self._projectors)
        limits = Limits(max_sessions=64, step_tokens=128)
        incarnation = f"{self.address}#{self.life}"
        self.verifier = Verifier(
            self.engine, self.engine.info, limits=limits, incarnation=incarnation, detokenizer=codec().detokenizer
        )

    def crash(self) -> None:
        self.alive, self.life = False, self.life + 1

    @property
    def info(self) -> TargetInfo:
        info = self.engine.info
        return TargetInfo(
            incarnation=self.verifier.incarnation,
            model_id=info.model_id,
            fingerprint=info.fingerprint,
            numerics_class=info.numerics_class,
            vocab_size=info.vocab_size,
            context_length=CONTEXT,
            tokenizer_fingerprint=codec().fingerprint,
            eos_token_ids=info.eos_token_ids,
            max_sessions=64,
            max_draft_tokens=32,
            cost_curve=tuple((rows, self._cost.seconds(rows)) for rows in (1, 16, 64, 128)),
            projectors=tuple(info.features),
        )

    def open(self, opening: SessionOpen) -> str:
        self.verifier.open(opening, self.world.now)
        return self.verifier.incarnation

    def release(self, session_id: str, epoch: int) -> None:
        self.verifier.release(session_id, epoch)

    def drop_router(self, router_id: str) -> None:
        self.verifier.drop_router(router_id)

    def receive(self, router_id: str, tasks: Sequence[VerifyTask]) -> None:
        submitted = [self.verifier.submit(router_id, task, self.world.now) for task in tasks]
        at_once = [result for result in submitted if result is not None]
        if at_once:
            self._send(router_id, at_once, StepReport())
        self._step()
        self.pump()

    def _step(self) -> None:
        plan = None if self._stepping else self.verifier.plan(self.world.now)
        if plan is not None:
            self._stepping = True
            rows = self.verifier.feeds.of_step(plan)
            read = [self.engine.locate_features(each.session_id, each.feed.projector, *each[2:]) for each in rows]
            done = functools.partial(self._complete, self.life, plan, list(zip(rows, read, strict=True)))
            self.world.after(self._cost.seconds(plan.rows), done)

    def _complete(self, life: int, plan: StepPlan, awaited: Sequence[tuple[Rows, FeatureRows]]) -> None:
        if life != self.life:
            return
        self._stepping = False
        broken = self.world.rng.random() < self._broken_steps
        now = self.world.now
        served = self.verifier.fail(plan, now) if broken else self.verifier.complete(plan, self.engine.step(plan), now)
        if not broken:
            for rows, data in zip(awaited, self.engine.read_features([each for _, each in awaited]), strict=True):
                self.verifier.feeds.computed(rows[0], data)
        self.verifier.check_integrity()
        report = StepReport(plan.step_id, len(plan.slices), plan.rows, int(self._cost.seconds(plan.rows) * 1e6))
        by_router: dict[str, list[VerifyResult]] = {}
        for item in served:
            if item.result is not None:
                by_router.setdefault(item.router_id, []).append(item.result)
        for router_id, results in by_router.items():
            self._send(router_id, results, report)
        self._step()
        self.pump()


class SimDraft:
    """A draft worker with an n-gram and a model drafter. ``pause`` says how long its next run takes."""

    def __init__(
        self,
        world: World,
        address: str,
        send: Callable[[str, list[DraftResult]], None],
        pause: Callable[[], float],
        reader: Callable[[], FeatureDrafter] | None = None,
    ) -> None:
        """Args: reader: makes a drafter that reads features, to be the default."""
        self.world, self.address, self._send, self._pause = world, address, send, pause
        self._reader = reader
        self.answer_feeds: Callable[[], None] = lambda: None  # tells targets where to go on
        self.asked: list[DraftTask] = []
        self.life = 0
        self.alive = False
        self.start()

    def start(self) -> None:
        self.alive, self.life = True, self.life + 1
        guess = SimEngine(GUESS, sleep=None, duration=lambda _: 0.0, model_id="guess")
        drafters: tuple[Drafter, ...] = (
            chooser(ModelDrafter(guess), NgramDrafter(), clock=lambda: self.world.now),
            NgramDrafter(),
        )
        if self._reader is not None:
            drafters = (self._reader(), *drafters)
        self.readers = [drafter for drafter in drafters if isinstance(drafter, FeatureDrafter)]
        self.worker = DraftWorker(drafters, drafters[0].name, incarnation=f"{self.address}#{self.life}")

    def crash(self) -> None:
        self.alive, self.life = False, self.life + 1

    @property
    def info(self) -> DraftInfo:
        return DraftInfo(
            incarnation=self.worker.incarnation,
            drafters=(
                *(DrafterInfo(each.name, "", True, each.projector) for each in self.readers),
                *(DrafterInfo(name) for name in self.worker.names if name not in {each.name for each in self.readers}),
            ),
            default_drafter=self.worker.default,
            max_sessions=64,
            max_draft_tokens=self.worker.max_draft_tokens,
        )

    def open(self, opening: SessionOpen) -> str:
        self.worker.open(opening, self.world.now)
        return self.worker.incarnation

    def release(self, session_id: str, epoch: int) -> None:
        self.worker.release(session_id, epoch)

    def drop_router(self, router_id: str) -> None:
        self.worker.drop_router(router_id)

    def receive(self, router_id: str, tasks: Sequence[DraftTask]) -> None:
        self.asked += tasks
        submitted = [self.worker.submit(router_id, task, self.world.now) for task in tasks]
        self._answer([(router_id, result) for result in submitted if result is not None])
        self.answer_feeds()
        self.work()

    def work(self) -> None:
        """Start what there is to do."""
        for drafter in self.worker.drafters:
            self._start(drafter)

    def _start(self, drafter: str) -> None:
        batch = self.worker.plan(drafter, self.world.now)
        if batch is None:
            until = self.worker.held_until(drafter)
            if until is not None:
                self.world.after(until - self.world.now, functools.partial(self._again, self.life))
            return
        self._answer(batch.expired)
        outcome = self.worker.run(batch, lambda: self.world.now)
        life = self.life

        def complete() -> None:
            if life == self.life:
                self._answer(self.worker.complete(batch, outcome, self.world.now))
                self.worker.check_integrity()
                self.answer_feeds()
                self._start(drafter)

        self.world.after(self._pause(), complete)

    def _again(self, life: int) -> None:
        if life == self.life:
            self.work()

    def _answer(self, answers: Sequence[tuple[str, DraftResult]]) -> None:
        by_router: dict[str, list[DraftResult]] = {}
        for router_id, result in answers:
            by_router.setdefault(router_id, []).append(result)
        for router_id, results in by_router.items():
            self._send(router_id, results)


def plain(opening: SessionOpen) -> tuple[tuple[int, ...], str]:
    """What the fake target alone writes, token by token, for a session opened with its prompt; and its text."""
    engine = fake_target()
    answer = resume(opening, context_length=CONTEXT, eos=engine.info.eos_token_ids, detokenizer=codec().detokenizer)
    assert engine.reserve("s", CONTEXT)
    tokens, texts, start = list(opening.tokens), [], 0
    while answer.finish is None:
        piece = Slice("s", start, tuple(tokens[start:]), 1, opening.sampling, opening.prompt_len, opening.choice)
        ((token,),) = engine.step(StepPlan(len(tokens), (piece,))).samples
        start = len(tokens)
        tokens.append(token)
        texts.append(answer.push(token))
    return tuple(tokens[opening.prompt_len :]), "".join(texts)
