"""The router's connections to workers, simulated: delays, losses, repetitions, reordering, streams that break."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from paceline.speculation.errors import DeadlineExceeded, PacelineError, Unavailable

from tests.sim.workers import SimDraft, SimTarget
from tests.sim.world import World


@dataclass(frozen=True, slots=True)
class Weather:
    """What the network does to messages and calls. Probabilities are per message."""

    delay_min_s: float = 0.0001
    delay_max_s: float = 0.003  # drawn per message, so messages overtake each other
    drop: float = 0.0
    duplicate: float = 0.0
    call_loss: float = 0.0  # a unary call's request or answer is lost


class Connection:
    """One router's link to one worker: up under a router id of its own, or down."""

    def __init__(self, world: World, worker: SimTarget | SimDraft, weather: Weather, router: str) -> None:
        self.world, self.worker, self.weather = world, worker, weather
        self.up = False
        self._router = router
        self._connects = 0

    @property
    def router_id(self) -> str:
        return f"{self._router}.{self._connects}"

    def connect(self) -> str:
        """Returns the connection's router id."""
        assert self.worker.alive
        self.up = True
        self._connects += 1
        return self.router_id

    def to_worker(self, tasks: list[Any]) -> None:
        router_id, life = self.router_id, self.worker.life

        def arrive() -> None:
            if self.worker.alive and self.worker.life == life and self.router_id == router_id:
                self.worker.receive(router_id, tasks)

        self._carry(f"▶ {self.worker.address} {len(tasks)}", arrive)

    def to_router(self, router_id: str, act: Callable[[], None]) -> None:
        def arrive() -> None:
            if self.up and self.router_id == router_id:
                act()

        self._carry(f"◀ {self.worker.address}", arrive)

    def call(
        self,
        work: Callable[[], Any],
        timeout_s: float,
        done: Callable[[Any], None],
        failed: Callable[[PacelineError], None],
    ) -> None:
        """A unary call: the worker does the work and answers, or something is lost on the way."""
        rng, life = self.world.rng, self.worker.life
        lost_there, lost_back = (rng.random() < self.weather.call_loss for _ in range(2))
        there, back = self._delay(), self._delay()

        def serve() -> None:
            if not self.worker.alive or self.worker.life != life:
                self.world.after(back, partial(failed, Unavailable("connection refused")))
                return
            try:
                answer = work()
            except PacelineError as error:
                self.world.after(back, partial(failed, error))
                return
            if not lost_back:
                self.world.after(back, partial(done, answer))

        if not lost_there:
            self.world.after(there, serve)
        if lost_there or lost_back:
            self.world.after(timeout_s, partial(failed, DeadlineExceeded("no answer")))

    def _delay(self) -> float:
        return self.world.rng.uniform(self.weather.delay_min_s, self.weather.delay_max_s)

    def _carry(self, what: str, arrive: Callable[[], None]) -> None:
        if self.world.rng.random() < self.weather.drop:
            self.world.note(f"{what} dropped")
            return
        self.world.note(what)
        self.world.after(self._delay(), arrive)
        if self.world.rng.random() < self.weather.duplicate:
            self.world.after(self._delay(), arrive)
