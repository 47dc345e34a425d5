"""A whole cluster in one thread: the router's dispatcher, real worker cores, a simulated network, seeded trouble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from paceline.router.answers import Answer
from paceline.router.dispatcher import Dispatcher
from paceline.router.effects import OpenCall
from paceline.router.pairing import Registry
from paceline.router.requests import Committed, Completed, Event, Request, Started
from paceline.router.spans import NoSpans
from paceline.speculation.actions import SessionSpec
from paceline.speculation.errors import PacelineError
from paceline.speculation.leases import Side
from paceline.speculation.messages import DraftResult, StepReport, VerifyResult
from paceline.speculation.params import SamplingParams
from paceline.speculation.rounds import Session

from tests.sim.features import PROJECTOR, CheckedDrafter, FeatureLine
from tests.sim.network import Connection
from tests.sim.scenario import Outcome, Scenario
from tests.sim.workers import CONTEXT, SimDraft, SimTarget, fake_target
from tests.sim.world import World

LIMIT_S = 600.0


class Cluster:
    """Runs a scenario."""

    def __init__(self, seed: int, scenario: Scenario) -> None:
        self.seed, self.scenario = seed, scenario
        self.world = World(seed)
        policy = scenario.policy
        registry = Registry(draft_deadline_s=policy.draft_deadline_s, breaker_max_s=policy.retry_max_s)
        self.dispatcher = Dispatcher(policy, registry)
        self.outcomes: dict[str, Outcome] = {}
        self._tick_at: float | None = None
        self.links: dict[tuple[Side, str], Connection] = {}
        for index in range(scenario.targets):
            send = partial(self._verdicts, f"t{index}")
            projectors = (PROJECTOR,) if scenario.features and index < scenario.feature_targets else ()
            target = SimTarget(
                self.world, f"t{index}", send, scenario.cost, scenario.broken_steps, projectors=projectors
            )
            self._add(Side.TARGET, target)
        self.readers: list[CheckedDrafter] = []  # of all lives of all draft workers
        for index in range(scenario.drafts):
            reader = self._reader if scenario.features else None
            send_drafts = partial(self._drafts, f"d{index}")
            self._add(Side.DRAFT, SimDraft(self.world, f"d{index}", send_drafts, self._pause, reader))
        if scenario.features:
            self._lay_feature_lines()

    def run(self) -> list[Outcome]:
        """Returns what each client saw. Raises AssertionError if anything hangs."""
        for link in self.links:
            self._connect(*link)
        for index in range(self.scenario.sessions):
            self.world.after(self.world.rng.uniform(0, self.scenario.arrivals_s), partial(self._ask, f"s{index}"))
        self._plan_trouble()
        self.world.run(self._done, LIMIT_S)
        unfinished = [outcome.spec.session_id for outcome in self.outcomes.values() if not outcome.ended]
        assert not unfinished, f"never ended: {unfinished}"
        return list(self.outcomes.values())

    def settle(self) -> None:
        """Let releases and restarts still under way happen."""
        until = self.world.now + 10.0
        self.world.after(10.0, lambda: None)
        self.world.run(lambda: self.world.now >= until, LIMIT_S + 20)

    def _done(self) -> bool:
        return len(self.outcomes) == self.scenario.sessions and all(o.ended for o in self.outcomes.values())

    # Clients ----------------------------------------------------------------------------------------------------

    def _ask(self, session_id: str) -> None:
        rng = self.world.rng
        prompt = tuple(rng.randrange(97, 123) for _ in range(rng.randrange(1, 60)))
        sampling = SamplingParams(
            temperature=rng.choice((0.0, 0.0, 0.0, 1.0)),  # noise is costly to draw, and the protocol does not care
            seed=rng.getrandbits(64),
            max_tokens=rng.randrange(*self.scenario.output),
            stop=rng.choice(((), (), ("ab",))),
        )
        speculation = rng.choice(self.scenario.speculation)
        spec = SessionSpec(session_id, prompt, sampling, speculation)
        outcome = self.outcomes[session_id] = Outcome(spec, asked_at=self.world.now)
        policy = self.scenario.policy
        session = Session(spec, draft_deadline_s=policy.draft_deadline_s, verify_deadline_s=policy.verify_deadline_s)
        request = Request(speculation=speculation)
        model = next(iter(self.dispatcher.registry.targets.values())).info
        answer = Answer(
            request=request,
            session=session,
            model=model,
            numerics_class="",
            deadline=self.world.now + 300,
            span=NoSpans().start_request(request),
            drafter=speculation.drafter,
        )
        if rng.random() < self.scenario.cancels:
            self.world.after(rng.uniform(0, 0.4), partial(self._leave, outcome))
        self.dispatcher.submit(answer, self.world.now)
        self._flush()

    def _leave(self, outcome: Outcome) -> None:
        if not outcome.ended:
            outcome.cancelled = True
            self.dispatcher.cancel(outcome.spec.session_id, self.world.now, GeneratorExit())
            self._flush()

    def _deliver(self, session_id: str, event: Event | PacelineError) -> None:
        outcome = self.outcomes[session_id]
        assert not outcome.ended, f"{session_id}: {event} after the end"
        self.world.note(f"{session_id} {_brief(event)}")
        if isinstance(event, PacelineError):
            outcome.error, outcome.error_at = event, self.world.now
        else:
            outcome.events.append(event)
            outcome.moments.append(self.world.now)

    # Effects ----------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        while effects := self.dispatcher.take():
            for address, drafts in effects.drafts.items():
                self.links[Side.DRAFT, address].to_worker(list(drafts))
            for address, verifies in effects.verifies.items():
                self.links[Side.TARGET, address].to_worker(list(verifies))
            for opening in effects.opens:
                self._open(opening)
            for release in effects.releases:
                worker = self.links[release.side, release.address].worker
                work = partial(worker.release, release.session_id, release.lease_epoch)
                self.links[release.side, release.address].call(work, 1.0, lambda _: None, lambda _: None)
            for session_id, event in effects.events:
                self._deliver(session_id, event)
            for side, address in effects.resets:
                self._break(side, address, self.world.rng.uniform(0.01, 0.1))
        self._arm()

    def _open(self, call: OpenCall) -> None:
        worker = self.links[call.side, call.address].worker

        def opened(incarnation: str) -> None:
            self.dispatcher.opened(call, incarnation, self.world.now)
            self._flush()

        def failed(error: PacelineError) -> None:
            self.dispatcher.open_failed(call, error, self.world.now)
            self._flush()

        self.world.note(f"open {call.opening.session_id} on {call.address} epoch {call.opening.lease_epoch}")
        self.links[call.side, call.address].call(partial(worker.open, call.opening), call.timeout_s, opened, failed)

    def _arm(self) -> None:
        deadline = self.dispatcher.next_deadline()
        if deadline is None or self._tick_at == deadline:
            return
        self._tick_at = deadline

        def tick() -> None:
            if self._tick_at == deadline:
                self._tick_at = None
                self.dispatcher.tick(self.world.now)
                self._flush()

        self.world.after(deadline - self.world.now, tick)

    def _verdicts(self, address: str, router_id: str, results: list[VerifyResult], step: StepReport) -> None:
        def arrive() -> None:
            self.dispatcher.on_verdicts(address, results, step, self.world.now)
            self._flush()

        self.links[Side.TARGET, address].to_router(router_id, arrive)

    def _drafts(self, address: str, router_id: str, results: list[DraftResult]) -> None:
        def arrive() -> None:
            self.dispatcher.on_drafts(address, results, self.world.now)
            self._flush()

        self.links[Side.DRAFT, address].to_router(router_id, arrive)

    def _pause(self) -> float:
        """How long a draft worker's run takes."""
        rng = self.world.rng
        slow = rng.random() < self.scenario.slow_drafts
        return rng.uniform(0.06, 0.4) if slow else rng.uniform(*self.scenario.draft_run_s)

    # Connections and trouble ------------------------------------------------------------------------------------

    def _reader(self) -> CheckedDrafter:
        self.readers.append(CheckedDrafter(fake_target((PROJECTOR,)), self.scenario.feature_room))
        return self.readers[-1]

    def _lay_feature_lines(self) -> None:
        """One from every target to every draft worker."""
        workers = [link.worker for link in self.links.values()]
        targets = [worker for worker in workers if isinstance(worker, SimTarget)]
        drafts = [worker for worker in workers if isinstance(worker, SimDraft)]
        breaks = self.scenario.feature_breaks
        lines = [FeatureLine(self.world, target, draft, breaks) for target in targets for draft in drafts]
        for target in targets:
            target.pump = partial(_each, [line.pump for line in lines if line.target is target])
        for draft in drafts:
            draft.answer_feeds = partial(_each, [line.answer for line in lines if line.draft is draft])

    def _add(self, side: Side, worker: SimTarget | SimDraft) -> None:
        self.links[side, worker.address] = Connection(self.world, worker, self.scenario.weather, "router")

    def _connect(self, side: Side, address: str) -> None:
        link = self.links[side, address]
        if not link.worker.alive or link.up:
            return
        router_id = link.connect()
        self.world.note(f"{address} up as {router_id}, {link.worker.info.incarnation}")
        if isinstance(link.worker, SimTarget):
            self.dispatcher.target_up(address, link.worker.info, router_id, self.world.now)
        else:
            self.dispatcher.draft_up(address, link.worker.info, router_id, self.world.now)
        self._flush()

    def _break(self, side: Side, address: str, away_s: float) -> None:
        """The stream ends: the router knows at once, the worker later, perhaps after the next stream began."""
        link = self.links[side, address]
        if not link.up:
            return
        link.up = False
        self.world.note(f"{address} stream broken")
        life, router_id, worker = link.worker.life, link.router_id, link.worker

        def clean_up() -> None:
            if worker.life == life:
                worker.drop_router(router_id)

        self.world.after(self.world.rng.uniform(0, 2 * away_s), clean_up)
        down = self.dispatcher.target_down if side is Side.TARGET else self.dispatcher.draft_down
        down(address, self.world.now)
        self._flush()
        self.world.after(away_s, partial(self._connect, side, address))

    def _crash(self, side: Side, address: str) -> None:
        rng, link = self.world.rng, self.links[side, address]
        if not link.worker.alive:
            return
        self.world.note(f"{address} crashed")
        link.worker.crash()
        outage = rng.uniform(0.05, self.scenario.outage_max_s)
        self.world.after(rng.uniform(0, 0.05), partial(self._break, side, address, outage + 0.05))
        self.world.after(outage, partial(self._restart, side, address))

    def _restart(self, side: Side, address: str) -> None:
        link = self.links[side, address]
        if not link.worker.alive:
            link.worker.start()
            self.world.after(0.05, partial(self._connect, side, address))

    def _plan_trouble(self) -> None:
        rng = self.world.rng
        for _ in range(self.scenario.amnesia):
            worker = self.links[rng.choice(list(self.links))].worker
            self.world.after(rng.uniform(0, self.scenario.trouble_s), partial(self._forget, worker))
        for side, faults in ((Side.TARGET, self.scenario.target_faults), (Side.DRAFT, self.scenario.draft_faults)):
            addresses = [address for kind, address in self.links if kind is side]
            for _ in range(faults if addresses else 0):
                self.world.after(rng.uniform(0, self.scenario.trouble_s), self._trouble(side, rng.choice(addresses)))

    def _forget(self, worker: SimTarget | SimDraft) -> None:
        self.world.note(f"{worker.address} forgets its sessions")
        for session_id in self.outcomes:
            worker.release(session_id, 2**63)

    def _trouble(self, side: Side, address: str) -> Callable[[], None]:
        if self.world.rng.random() < 0.6:
            return partial(self._crash, side, address)
        return partial(self._break, side, address, self.world.rng.uniform(0.01, 0.3))


def _each(acts: Sequence[Callable[[], None]]) -> None:
    for act in acts:
        act()


def _brief(event: Event | PacelineError) -> str:
    if isinstance(event, Committed):
        sources = "".join("_ACBT"[source] for source in event.sources)
        return f"round {event.round_id} commits {list(event.tokens)} {sources} at {event.index}"
    if isinstance(event, Started):
        return f"started, epoch {event.lease_epoch}"
    if isinstance(event, Completed):
        return f"completed: {event.finish.reason.name}"
    return f"failed: {event}"


assert CONTEXT > 120  # prompts and answers of _ask fit
