"""The workers a router knows, and which of them a session is given to.

Sans-I/O: links report what they learn, the dispatcher asks for places. Only workers that are up are ever chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from paceline.router.breaker import Breaker, BreakerState
from paceline.router.requests import Model
from paceline.speculation.errors import NotFound
from paceline.speculation.leases import Side


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """What a target verifier said of itself."""

    incarnation: str
    model_id: str
    fingerprint: str
    numerics_class: str
    vocab_size: int
    context_length: int
    tokenizer_fingerprint: str
    eos_token_ids: tuple[int, ...] = ()
    max_sessions: int = 0  # 0 = not said
    max_draft_tokens: int = 0
    sampler_version: str = ""
    cost_curve: tuple[tuple[int, float], ...] = ()  # (rows, seconds)
    projectors: tuple[str, ...] = ()  # whose context features it keeps


@dataclass(frozen=True, slots=True)
class DrafterInfo:
    """A drafter a draft worker offers. An empty tokenizer fingerprint fits every target: it only copies ids."""

    name: str
    tokenizer_fingerprint: str = ""
    needs_features: bool = False
    projector: str = ""  # that its features must come from

    def reads(self, target: TargetInfo) -> bool:
        """Whether it reads what the target writes."""
        return self.tokenizer_fingerprint in {"", target.tokenizer_fingerprint}

    def fits(self, target: TargetInfo) -> bool:
        """Whether the target has all it needs."""
        return self.reads(target) and (not self.needs_features or self.projector in target.projectors)


@dataclass(frozen=True, slots=True)
class DraftInfo:
    """What a draft worker said of itself."""

    incarnation: str
    drafters: tuple[DrafterInfo, ...]
    default_drafter: str
    max_sessions: int = 0
    max_draft_tokens: int = 0
    sampler_version: str = ""

    def drafter_for(self, wanted: str, target: TargetInfo) -> DrafterInfo | None:
        """A drafter for sessions of that target: the one wanted, else the default; None if unfit.

        One that misses its features there gives way to the first that needs none. A drafter that draws with another
        sampler would rarely agree, so it does not fit either.
        """
        if self.sampler_version and target.sampler_version and self.sampler_version != target.sampler_version:
            return None
        name = wanted or self.default_drafter
        named = next((each for each in self.drafters if each.name == name), None)
        if named is None or not named.reads(target):
            return None
        if named.fits(target):
            return named
        return next((each for each in self.drafters if not each.needs_features and each.fits(target)), None)


@dataclass(slots=True)
class Target:
    """A target verifier's place in the registry."""

    address: str
    info: TargetInfo
    up: bool = True
    router_id: str = ""
    sessions: set[str] = field(default_factory=set)

    @property
    def room(self) -> bool:
        return not self.info.max_sessions or len(self.sessions) < self.info.max_sessions


@dataclass(slots=True)
class Draft:
    """A draft worker's place in the registry."""

    address: str
    info: DraftInfo
    breaker: Breaker
    up: bool = True
    router_id: str = ""
    sessions: set[str] = field(default_factory=set)

    @property
    def room(self) -> bool:
        return not self.info.max_sessions or len(self.sessions) < self.info.max_sessions


def target_score(target: Target, tokens: Collection[int]) -> tuple[float, ...]:
    """Smaller is better. ``tokens`` are the session's: a longest cached prefix will come first here."""
    del tokens
    return (len(target.sessions) / max(1, target.info.max_sessions or 1_000_000), len(target.sessions))


class Registry:
    """All workers, by address.

    Args:
        draft_deadline_s: how long a draft worker may take to answer; its breaker first pauses twice as long.
        breaker_max_s: the longest pause.
    """

    def __init__(self, *, draft_deadline_s: float, breaker_max_s: float) -> None:
        self.targets: dict[str, Target] = {}
        self.drafts: dict[str, Draft] = {}
        self._draft_deadline_s = draft_deadline_s
        self._breaker_max_s = breaker_max_s

    def target_up(self, address: str, info: TargetInfo, router_id: str) -> Target:
        """A target is reachable; ``router_id`` names this connection to it."""
        target = self.targets[address] = Target(address, info, router_id=router_id)
        return target

    def draft_up(self, address: str, info: DraftInfo, router_id: str) -> Draft:
        """A draft worker is reachable. Its breaker remembers what came before."""
        known = self.drafts.get(address)
        breaker = known.breaker if known else self._new_breaker()
        draft = self.drafts[address] = Draft(address, info, breaker, router_id=router_id)
        return draft

    def _new_breaker(self) -> Breaker:
        deadline = self._draft_deadline_s
        return Breaker(patience_s=deadline, first_pause_s=2 * deadline, max_pause_s=self._breaker_max_s)

    def down(self, side: Side, address: str, now: float) -> frozenset[str]:
        """A worker is lost; returns the sessions it held, which it holds no more."""
        worker = self.targets.get(address) if side is Side.TARGET else self.drafts.get(address)
        if worker is None or not worker.up:
            return frozenset()
        worker.up = False
        if isinstance(worker, Draft):
            worker.breaker.fail(now)
        lost = frozenset(worker.sessions)
        worker.sessions.clear()
        return lost

    def up(self, side: Side) -> int:
        """How many workers of a kind are up."""
        workers = self.targets if side is Side.TARGET else self.drafts
        return sum(worker.up for worker in workers.values())

    # Choosing ---------------------------------------------------------------------------------------------------

    def place_target(
        self, model_id: str, numerics_class: str, tokens: Collection[int], avoid: Collection[str] = ()
    ) -> Target | None:
        """A verifier for a session: of its numerics class, else of another; with room; the best by target_score.

        ``avoid`` are those that just refused it. An empty class leaves it open.
        """
        able = [t for t in self._serving(model_id) if t.room and t.address not in avoid]
        same = [t for t in able if numerics_class in {"", t.info.numerics_class}]
        if not same and any(t.info.numerics_class == numerics_class for t in self._serving(model_id)):
            return None  # full or unwilling just now, but there: moving across classes would change the text
        return min(same or able, key=lambda target: target_score(target, tokens), default=None)

    def place_draft(self, target: TargetInfo, wanted: str, now: float) -> tuple[Draft, DrafterInfo] | None:
        """A draft worker for a session of that target, and the drafter; None if there is none to ask."""
        able = [
            (draft, drafter)
            for draft in self.drafts.values()
            if draft.up and draft.room and (drafter := draft.info.drafter_for(wanted, target)) is not None
        ]
        return min(able, key=lambda pair: (self._trouble(pair[0]), len(pair[0].sessions)), default=None)

    def better_draft_exists(self, than: str, target: TargetInfo, wanted: str) -> bool:
        """Whether another draft worker, with a closed breaker, could take sessions of this one."""
        return any(
            draft.up
            and draft.room
            and draft.address != than
            and draft.breaker.state is BreakerState.CLOSED
            and draft.info.drafter_for(wanted, target) is not None
            for draft in self.drafts.values()
        )

    @staticmethod
    def _trouble(draft: Draft) -> int:
        return 0 if draft.breaker.state is BreakerState.CLOSED else 1

    def _serving(self, model_id: str) -> list[Target]:
        return [t for t in self.targets.values() if t.up and t.info.model_id == model_id]

    # Models -----------------------------------------------------------------------------------------------------

    def models(self) -> list[Model]:
        """Every model seen, with how many serve it just now. A model's class is that of its first target up."""
        names = dict.fromkeys(target.info.model_id for target in self.targets.values())
        return [self._model(name) for name in names]

    def resolve(self, name: str) -> TargetInfo:
        """The description of a model; empty names the only one.

        Raises:
            NotFound: there is none of that name, or not exactly one.
        """
        known = [model.model_id for model in self.models()]
        if not name and len(known) == 1:
            name = known[0]
        if name not in known:
            listed = ", ".join(known) or "none yet"
            raise NotFound(f"model: expected one of {listed}, got {name!r}")
        return self._first(name).info

    def drafters(self, info: TargetInfo) -> tuple[str, ...]:
        """Names of the drafters that draft workers up just now offer for a target."""
        return tuple(sorted({drafter for _, drafter in self._fitting(info)}))

    def _first(self, name: str) -> Target:
        return min((t for t in self.targets.values() if t.info.model_id == name), key=lambda target: not target.up)

    def _model(self, name: str) -> Model:
        info = self._first(name).info
        fitting = list(self._fitting(info))
        return Model(
            model_id=name,
            fingerprint=info.fingerprint,
            numerics_class=info.numerics_class,
            context_length=info.context_length,
            drafters=self.drafters(info),
            targets=len(self._serving(name)),
            drafts=len({address for address, _ in fitting}),
            cost_curve=info.cost_curve,
        )

    def _fitting(self, info: TargetInfo) -> Iterable[tuple[str, str]]:
        for draft in self.drafts.values():
            for drafter in draft.info.drafters:
                if draft.up and draft.info.drafter_for(drafter.name, info) is drafter:
                    yield draft.address, drafter.name
