"""What a simulated run is made of, and what its clients saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from paceline.router.placement import Policy
from paceline.router.requests import Committed, Completed, Event
from paceline.speculation.actions import SessionSpec
from paceline.speculation.errors import PacelineError, Unavailable
from paceline.speculation.params import SpeculationMode, SpeculationParams

from tests.sim.network import Weather
from tests.sim.workers import Cost

FAIR = Weather()
CHEAP = Cost()
ANY_SPECULATION = (
    SpeculationParams(),
    SpeculationParams(drafter="ngram"),
    SpeculationParams(drafter="model"),
    *(SpeculationParams(SpeculationMode.FIXED, k) for k in range(1, 9)),
    SpeculationParams(SpeculationMode.OFF),
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a simulated run is made of. Trouble strikes ``faults`` times within ``trouble_s``."""

    targets: int = 2
    drafts: int = 2
    sessions: int = 6
    arrivals_s: float = 0.1
    weather: Weather = FAIR
    target_faults: int = 0  # crashes and broken streams
    draft_faults: int = 0
    cost: Cost = CHEAP
    broken_steps: float = 0.0  # share of verify steps that fail, and lose their sessions
    features: bool = False  # draft workers have a drafter that reads them, and it is the default
    feature_targets: int = 64  # so many targets keep them
    feature_breaks: float = 0.0  # probability that a feature stream breaks at a message
    feature_room: int = 10_000  # positions that drafter has room for
    amnesia: int = 0  # a worker silently forgets the sessions it has, so many times
    draft_run_s: tuple[float, float] = (0.0005, 0.004)  # how long a draft worker's run takes
    output: tuple[int, int] = (1, 50)  # max_tokens of a request, from and below
    speculation: tuple[SpeculationParams, ...] = ANY_SPECULATION  # a session asks for one of these
    slow_drafts: float = 0.0  # share of a draft worker's runs that take far longer than the deadline
    cancels: float = 0.0  # share of requests whose client leaves
    trouble_s: float = 1.0
    outage_max_s: float = 1.5  # how long a crashed worker is away
    policy: Policy = field(
        default_factory=lambda: Policy(
            draft_deadline_s=0.05,
            verify_deadline_s=0.5,
            open_deadline_s=0.3,
            grace_s=8.0,
            retry_max_s=0.5,
            default_k=4,
        )
    )


@dataclass(slots=True)
class Outcome:
    """What one client saw."""

    spec: SessionSpec
    events: list[Event] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)  # parallel to events
    asked_at: float = 0.0
    error: PacelineError | None = None
    error_at: float = 0.0
    cancelled: bool = False

    @property
    def refused(self) -> bool:
        """Turned away at the door, because no verifier was there at that moment."""
        return isinstance(self.error, Unavailable) and not self.events and self.error_at == self.asked_at

    @property
    def commits(self) -> list[Committed]:
        return [event for event in self.events if isinstance(event, Committed)]

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for event in self.commits for token in event.tokens)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.commits)

    @property
    def ended(self) -> bool:
        return (
            self.error is not None or self.cancelled or (bool(self.events) and isinstance(self.events[-1], Completed))
        )

    @property
    def longest_stall_s(self) -> float:
        """Longest time without an event, from the request on."""
        moments = [self.asked_at, *self.moments]
        return max(later - earlier for earlier, later in pairwise(moments))


def scenario_of(seed: int) -> Scenario:
    """The scenario that a seed stands for: from fair weather to everything at once."""
    kinds: Sequence[Scenario] = (
        Scenario(),
        Scenario(targets=1, draft_faults=4, slow_drafts=0.1),
        Scenario(target_faults=4, amnesia=3),
        Scenario(weather=Weather(delay_max_s=0.02, duplicate=0.3)),
        Scenario(weather=Weather(drop=0.03, duplicate=0.1, call_loss=0.05), slow_drafts=0.05, cancels=0.2),
        Scenario(
            targets=3,
            sessions=10,
            weather=Weather(delay_max_s=0.01, drop=0.02, duplicate=0.1, call_loss=0.03),
            target_faults=4,
            draft_faults=4,
            amnesia=4,
            slow_drafts=0.1,
            cancels=0.1,
        ),
        Scenario(drafts=0, target_faults=2),
        Scenario(targets=1, target_faults=2, draft_faults=2),
        Scenario(targets=1, drafts=1, amnesia=12, broken_steps=0.05, trouble_s=0.4),
        Scenario(features=True, feature_breaks=0.02, feature_room=260, draft_faults=3, target_faults=2, amnesia=2),
    )
    return kinds[seed % len(kinds)]
