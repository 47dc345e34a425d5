"""What an evaluation found, as tables and as one JSON object."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline_client import Model

from paceline.cli.asking import Answered, Ask
from paceline.speculation.calibration import error, temperatures
from paceline.speculation.cost import CostCurve
from paceline.speculation.figures import Figures, RoundSeen, mean

PLAIN = "plain"  # the way without drafts
NOTHING = "–"
Table = Sequence[Sequence[str]]  # the first row is the head


@dataclass(slots=True)
class Prompt:
    """One prompt of a domain, and its answers by way, once all are there."""

    domain: str
    turns: tuple[str, ...]
    answers: dict[str, Answered] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cost:
    """What drafting costs and brings."""

    draft: float | None  # waiting for drafts, per round, over what a round without drafts waits for its verdict
    step: float | None  # a step with as many rows as were verified, over one without drafts, by the cost curve
    predicted: float | None  # speed-up that follows from both
    measured: float | None  # speed-up over plain answers, seconds over seconds


class Evaluation:
    """Prompts, ways to answer them, and the figures that come of it.

    Args:
        speculation: K, or auto.
        together: sessions at once.
        ask: what was asked of every prompt.
    """

    def __init__(self, *, speculation: str, together: int, ask: Ask) -> None:
        self.speculation, self.together, self.ask = speculation, together, ask
        self.prompts: list[Prompt] = []
        self.ways: tuple[str, ...] = (PLAIN,)
        self._model: Model | None = None

    def begin(self, model: Model, drafters: Sequence[str]) -> None:
        """Which model, and whose drafts."""
        self._model, self.ways = model, (PLAIN, *drafters)

    @property
    def drafters(self) -> tuple[str, ...]:
        return self.ways[1:]

    @property
    def complete(self) -> list[Prompt]:
        """Prompts that were answered every way."""
        return [prompt for prompt in self.prompts if prompt.answers]

    @property
    def domains(self) -> list[str]:
        return list(dict.fromkeys(prompt.domain for prompt in self.complete))

    # Figures ----------------------------------------------------------------------------------------------------

    def rounds(self, way: str, domain: str | None = None) -> list[RoundSeen]:
        """Rounds of a way, of one domain or all."""
        return [each for got in self._answers(way, domain) for each in got.rounds]

    def figures(self, way: str, domain: str | None = None) -> Figures:
        return Figures(self.rounds(way, domain))

    def cost(self, way: str, domain: str | None = None) -> Cost:
        """What drafting costs. Costs are those of ``together`` sessions that share their steps."""
        plain, mine = self._answers(PLAIN, domain), self._answers(way, domain)
        rounds = self.rounds(way, domain)
        plain_s = sum(got.verify_wait_s for got in plain) / sum(len(got.rounds) for got in plain)
        draft = sum(got.draft_wait_s for got in mine) / len(rounds) / plain_s if plain_s else None
        step = self._step(rounds)
        per_step = Figures(rounds).committed_per_step
        predicted = per_step / (draft + step) if None not in {per_step, draft, step} else None  # type: ignore[operator]
        seconds = sum(got.seconds for got in mine)
        return Cost(draft, step, predicted, sum(got.seconds for got in plain) / seconds if seconds else None)

    def calibration(self, way: str) -> tuple[float | None, float | None, tuple[float, ...]]:
        """Calibration error before and after temperatures, and these: fitted on half the prompts, judged on the rest"""
        fit, rest = (
            [each for prompt in self.complete[start::2] for each in prompt.answers[way].rounds if each.confidence]
            for start in (0, 1)
        )
        found = temperatures(fit)
        return error(rest), error(rest, found), found

    def differing(self) -> int | None:
        """Answers that are not plain decoding's; None where they need not be (rejection mode)."""
        if self.ask.temperature > 0 and self.ask.verification_mode == "rejection":
            return None
        return sum(
            prompt.answers[way].token_ids != prompt.answers[PLAIN].token_ids
            for prompt in self.complete
            for way in self.drafters
        )

    def _answers(self, way: str, domain: str | None) -> list[Answered]:
        return [prompt.answers[way] for prompt in self.complete if domain in {None, prompt.domain}]

    def _step(self, rounds: Sequence[RoundSeen]) -> float | None:
        points = self._model.cost_curve if self._model is not None else ()
        if not points or not rounds:
            return None
        curve, sessions = CostCurve(points), self.together
        return mean([curve.seconds(sessions * (1 + each.verified)) / curve.seconds(sessions) for each in rounds])

    # Text -------------------------------------------------------------------------------------------------------

    def text(self, *, markdown: bool) -> str:
        """All tables."""
        differing = self.differing()
        parts = [
            self._head(),
            _table(self.accepted_lengths(), markdown=markdown),
            _table(self.totals(), markdown=markdown),
            _table(self.by_position(), markdown=markdown),
        ]
        if differing is not None:
            answers = len(self.complete) * len(self.drafters)
            parts.append(f"{differing} of {answers} answers differ from plain decoding's.")
        return "\n\n".join(parts)

    def _head(self) -> str:
        model = self._model.id if self._model is not None else ""
        mode = "greedy" if self.ask.temperature == 0 else f"temperature {self.ask.temperature:g}"
        drafts = "drafting what pays" if self.speculation == "auto" else f"K = {self.speculation}"
        sessions = "one session" if self.together == 1 else f"{self.together} sessions"
        return (
            f"{model}, {len(self.complete)} prompts, {mode}, {self.ask.verification_mode} mode, {drafts}, "
            f"{self.ask.max_tokens} tokens at most, {sessions} at a time"
        )

    def accepted_lengths(self) -> Table:
        """τ by drafter and domain, with committed tokens per target step over all rounds in brackets."""
        rows = [["τ (committed per step)", *self.domains, "mean"]]
        for way in self.drafters:
            found = [self.figures(way, domain) for domain in self.domains]
            both = [(each.tau, each.committed_per_step) for each in found]
            both.append((mean([tau for tau, _ in both]), mean([step for _, step in both])))
            rows.append([way, *(f"{_number(tau)} ({_number(step)})" for tau, step in both)])
        return rows

    def totals(self) -> Table:
        """Rates, costs and calibration by drafter, over all domains."""
        rows = [
            ["over all", "accepted of drafted", "of verified", "draft cost", "step cost", "predicted", "measured",
             "ECE", "ECE scaled"]
        ]  # fmt: skip
        for way in self.drafters:
            figures, cost = self.figures(way), self.cost(way)
            before, after, _ = self.calibration(way)
            values = (cost.draft, cost.step, cost.predicted, cost.measured)
            rates = [_percent(figures.over_drafted), _percent(figures.over_verified)]
            rows.append([way, *rates, *map(_number, values), _number(before, 3), _number(after, 3)])
        return rows

    def by_position(self) -> Table:
        """Conditional acceptance by draft position."""
        found = {way: self.figures(way).acceptance() for way in self.drafters}
        most = max(map(len, found.values()), default=0)
        rows = [["accepted at position", *(str(place + 1) for place in range(most))]]
        for way, chances in found.items():
            rows.append([way, *(_percent(chance) for chance in chances), *[NOTHING] * (most - len(chances))])
        return rows

    def record(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "model": self._model.id if self._model is not None else None,
            "numerics_class": self._model.numerics_class if self._model is not None else None,
            "ask": dataclasses.asdict(self.ask),
            "speculation": self.speculation,
            "together": self.together,
            "prompts": {domain: sum(each.domain == domain for each in self.complete) for domain in self.domains},
            "differing_answers": self.differing(),
            "drafters": {way: self._record(way) for way in self.drafters},
        }

    def _record(self, way: str) -> dict[str, Any]:
        before, after, found = self.calibration(way)
        return {
            "all": self._of(way, None),
            "domains": {domain: self._of(way, domain) for domain in self.domains},
            "calibration": {"ece": before, "ece_scaled": after, "temperatures": found},
        }

    def _of(self, way: str, domain: str | None) -> dict[str, Any]:
        figures = self.figures(way, domain)
        return {
            "tau": figures.tau,
            "committed_per_step": figures.committed_per_step,
            "acceptance_over_drafted": figures.over_drafted,
            "acceptance_over_verified": figures.over_verified,
            "acceptance_by_position": figures.acceptance(),
            "survival_by_position": figures.survival(),
            "rounds": len(figures.rounds),
            "verify_rounds": len(figures.verify_rounds),
            "cost": dataclasses.asdict(self.cost(way, domain)),
        }


def _number(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.0f} %"


def _table(rows: Table, *, markdown: bool) -> str:
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([lines[0], f"| --- |{' ---: |' * (len(rows[0]) - 1)}", *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )
