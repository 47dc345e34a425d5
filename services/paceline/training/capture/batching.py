"""Plain decoding of many prompts at once: as soon as an answer ends, the next prompt takes its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from paceline.engine.interface import Engine, KvRequest, Slice, StepPlan
from paceline.speculation.errors import InvalidRequest
from paceline.training.capture.dialogue import Ask


@dataclass(slots=True)
class _Run:
    """An ask under way. Invariant: the KV state holds ``tokens[:held]``, and less than all of them."""

    ask: Ask
    ends: frozenset[int]
    held: int
    tokens: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.ask.prompt)

    @property
    def missing(self) -> int:
        return len(self.tokens) - self.held

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.ask.prompt) :]

    @property
    def ended(self) -> bool:
        made = len(self.tokens) - len(self.ask.prompt)
        return made > 0 and (self.tokens[-1] in self.ends or made == self.ask.sampling.max_tokens)

    def piece(self, rows: int) -> Slice:
        return Slice(
            session_id=self.ask.session_id,
            start=self.held,
            tokens=tuple(self.tokens[self.held : self.held + rows]),
            samples=1 if rows == self.missing else 0,
            sampling=self.ask.sampling,
            prompt_len=len(self.ask.prompt),
            choice=self.ask.choice,
        )


class Batch:
    """Answers asks, in batches. What is waiting is a bounded number of asks by the caller's doing: see ``wants``.

    Args:
        engine: driven by this batch alone.
        sessions: answers under way at once.
        step_tokens: rows of a step at most; at least ``sessions``.
    """

    def __init__(self, engine: Engine, *, sessions: int, step_tokens: int) -> None:
        if not 1 <= sessions <= step_tokens:
            raise InvalidRequest("step_tokens", expected=f"at least the {sessions} sessions", got=step_tokens)
        self._engine, self._sessions, self._step_tokens = engine, sessions, step_tokens
        self._ends = frozenset(engine.info.eos_token_ids)
        self._waiting: deque[Ask] = deque()
        self._runs: list[_Run] = []
        self._steps = 0

    def put(self, ask: Ask, *, first: bool = False) -> None:
        """Let an ask wait for its turn, or go before all others."""
        (self._waiting.appendleft if first else self._waiting.append)(ask)

    @property
    def wants(self) -> int:
        """How many more asks are of use before the next step."""
        return max(0, self._sessions - len(self._runs) - len(self._waiting))

    @property
    def busy(self) -> bool:
        return bool(self._runs or self._waiting)

    def step(self) -> Iterator[tuple[Ask, list[int]]]:
        """One forward pass; yields the answers that ended with it.

        Raises InvalidRequest if an ask needs more KV positions than the engine has.
        """
        self._admit()
        pieces = list(self._pieces())
        self._steps += 1
        result = self._engine.step(StepPlan(self._steps, tuple(piece for _, piece in pieces)))
        for (run, piece), samples in zip(pieces, result.samples, strict=True):
            run.held = piece.end
            if samples:
                if run.held == len(run.ask.prompt):  # others begin with the same words
                    self._engine.publish(run.ask.session_id, run.tokens, run.held)
                run.tokens.extend(samples)
        done = [run for run in self._runs if run.ended]
        self._runs = [run for run in self._runs if not run.ended]
        for run in done:
            self._engine.free(run.ask.session_id)
            yield run.ask, run.output

    def _admit(self) -> None:
        while self._waiting and len(self._runs) < self._sessions:
            ask = self._waiting[0]
            length = len(ask.prompt) + ask.sampling.max_tokens
            held = self._engine.admit(KvRequest(ask.session_id, ask.prompt, length))
            if held is None:
                if not self._runs:
                    raise InvalidRequest("kv_tokens", expected=f"{length} at least", got=self._engine.info.kv_tokens)
                return
            self._runs.append(_Run(self._waiting.popleft(), self._ends, held))

    def _pieces(self) -> Iterator[tuple[_Run, Slice]]:
        """Answers under way first, one row each; then prompts, as far as the step has room."""
        left = self._step_tokens
        for run in sorted(self._runs, key=lambda run: run.missing > 1):
            if rows := min(run.missing, left):
                yield run, run.piece(rows)
                left -= rows
