"""What the tests of drafters and of the draft worker share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paceline.drafters.interface import Ask, DraftSession
from paceline.engine.fake import FakeEngine, FakeOptions
from paceline.engine.interface import StepPlan, StepResult
from paceline.speculation.digest import PrefixDigest
from paceline.speculation.messages import DraftTask, Fence, Proposal, SessionOpen
from paceline.speculation.params import SamplingParams

INCARNATION = "worker-1"
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=7, max_tokens=4096, ignore_eos=True)


def opening(session_id: str = "s", tokens: Sequence[int] = (1, 2, 3), **fields: Any) -> SessionOpen:
    values: dict[str, Any] = {
        "lease_epoch": 1,
        "router_id": "r",
        "prompt_len": len(tokens),
        "sampling": SamplingParams(max_tokens=1000),
    }
    return SessionOpen(session_id, tokens=tuple(tokens), **(values | fields))


def session(session_id: str = "s", tokens: Sequence[int] = (1, 2, 3), **fields: Any) -> DraftSession:
    return DraftSession.opened(opening(session_id, tokens, **fields), "any")


def task(
    known: Sequence[int],
    appended: Sequence[int] = (),
    *,
    session_id: str = "s",
    round_id: int = 1,
    k: int = 4,
    epoch: int = 1,
    incarnation: str = INCARNATION,
    deadline_us: int = 0,
) -> DraftTask:
    """A task after ``known + appended`` whose appended tokens start at the end of ``known``."""
    tokens = [*known, *appended]
    fence = Fence(session_id, incarnation, epoch, round_id, len(tokens), PrefixDigest(tokens).value)
    return DraftTask(fence, tuple(appended), len(known), k, deadline_us)


class CountingDrafter:
    """Proposes base_len, base_len + 1, …, and remembers what it was told."""

    model_id = "counting-model"
    needs_features = False

    def __init__(self, name: str = "counting") -> None:
        self.name = name
        self.sessions: dict[str, DraftSession] = {}
        self.batches: list[list[Ask]] = []
        self.failures_left = 0

    def open(self, session: DraftSession) -> None:
        self.sessions[session.session_id] = session

    def close(self, session_id: str) -> None:
        self.sessions.pop(session_id, None)

    def propose(self, asks: Sequence[Ask]) -> list[Proposal]:
        self.batches.append(list(asks))
        assert all(ask.session_id in self.sessions for ask in asks)
        if self.failures_left:
            self.failures_left -= 1
            raise RuntimeError("the drafter broke")
        return [
            Proposal(tuple(range(ask.base_len, ask.base_len + ask.max_tokens)), self.name, self.model_id)
            for ask in asks
        ]


class RecordingEngine(FakeEngine):
    """A fake engine that remembers its plans."""

    def __init__(self, options: FakeOptions | None = None, *, kv_tokens: int = 65536, step_s: float = 0.0) -> None:
        super().__init__(
            options or FakeOptions(vocab_size=64),
            kv_tokens=kv_tokens,
            model_id="small",
            sleep=None,
            duration=lambda _: step_s,
        )
        self.plans: list[StepPlan] = []
        self.curve: tuple[tuple[int, float], ...] = ()
        self.broken = False

    def step(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        if self.broken:
            raise RuntimeError("the engine broke")
        return super().step(plan)

    def cost_curve(self) -> tuple[tuple[int, float], ...]:
        return self.curve

    @property
    def rows(self) -> int:
        """Rows computed so far."""
        return sum(plan.rows for plan in self.plans)
