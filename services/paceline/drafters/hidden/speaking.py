"""From scores to draft tokens, left to right: each step wants to know the token before.

Tokens are drawn as the target draws its own: with the request's options and the noise of the position, over the
target's token ids. Ids outside the draft vocabulary cannot come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from paceline.drafters.hidden.backend import Drafting
from paceline.drafters.interface import DraftSession
from paceline.speculation import drawing
from paceline.speculation.messages import Proposal, SparseDistribution
from paceline.speculation.sampling import NOTHING, DrawFast, Row
from paceline.speculation.shaping import Shaping


@dataclass(slots=True)
class Run:
    """One ask under way."""

    session: DraftSession
    base_len: int
    count: int  # draft tokens wanted
    ends: frozenset[int]  # tokens after which nothing follows
    shaping: Shaping | None  # after the first base_len tokens
    drafts: list[int] = field(default_factory=list)
    distributions: list[SparseDistribution] = field(default_factory=list)  # rejection mode: of each draft
    stuck: bool = False  # the options leave nothing to draft

    @property
    def wants(self) -> bool:
        return len(self.drafts) < self.count and not (self.drafts and self.drafts[-1] in self.ends) and not self.stuck

    @property
    def previous(self) -> int:
        """The token before the next draft."""
        return self.drafts[-1] if self.drafts else self.session.tokens[self.base_len - 1]

    @property
    def plain(self) -> bool:
        """Whether the next draft is the likeliest token and nothing else matters."""
        return self.shaping is None and self.session.sampling.greedy

    def row(self) -> Row:
        """What the sampler is told of the next draft."""
        session = self.session
        position = self.base_len + len(self.drafts) - session.prompt_len
        shaping = self.shaping.row(self.drafts) if self.shaping else None
        return Row(session.sampling, position, session.choice, shaping, proposes=session.sampling.rejects)

    def forced(self) -> int | None:
        """The next draft, if the grammar leaves no choice; not in rejection mode, where a draft comes with what it was
        drawn from."""
        if self.shaping is None or self.session.sampling.rejects:
            return None
        return next(iter(self.shaping.forced(self.drafts)), None)

    def take(self, token: int, distribution: SparseDistribution | None = None) -> None:
        if token == NOTHING:
            self.stuck = True
            return
        self.drafts.append(token)
        if distribution is not None:
            self.distributions.append(distribution)

    def proposal(self, drafter: str, model_id: str, confidence: Sequence[float]) -> Proposal:
        told = tuple(confidence[: len(self.drafts)])
        return Proposal(tuple(self.drafts), drafter, model_id, told, tuple(self.distributions))


class Speaker:
    """Draws the drafts of all runs.

    Args:
        target_ids: [Vd], of the draft vocabulary, ascending.
        vocab_size: of the target, V.
        fast: see ``sampling.sample``.
    """

    def __init__(self, target_ids: Tensor, vocab_size: int, fast: DrawFast | None = None) -> None:
        self._ids, self._vocab_size, self._fast = target_ids, vocab_size, fast
        self._full = torch.empty(0, vocab_size)

    def speak(self, drafting: Drafting, runs: Sequence[Run]) -> list[tuple[float, ...]]:
        """Fill the drafts of runs, one per session, of which none wants more than K; returns the acceptance estimates
        of each, if there is a head for them."""
        before: list[list[int]] = []  # by step, the token before
        for step in range(drafting.steps):
            active = [index for index, run in enumerate(runs) if run.wants]
            if not active:
                break
            before.append([run.previous for run in runs])
            previous = torch.tensor([before[-1][index] for index in active])
            self._draw(drafting.logits(step, previous, active), [runs[index] for index in active])
        found = drafting.confidence(torch.tensor(before)) if before else None
        return [()] * len(runs) if found is None else [tuple(column) for column in found.T.tolist()]

    def _draw(self, logits: Tensor, runs: Sequence[Run]) -> None:
        if all(run.plain for run in runs):
            for run, token in zip(runs, self._ids[logits.argmax(-1)].tolist(), strict=True):
                run.take(token)
            return
        drawn = drawing.draw(self._over_all(logits), [run.row() for run in runs], self._fast)
        for run, token, sent in zip(runs, drawn.tokens, drawn.distributions, strict=True):
            forced = run.forced()
            run.take(token if forced is None else forced, sent)

    def _over_all(self, logits: Tensor) -> Tensor:
        """Logits over the target's vocabulary, -inf for tokens that are not in the draft vocabulary."""
        if len(self._ids) == self._vocab_size:
            return logits
        count = len(logits)
        if len(self._full) < count or self._full.dtype != logits.dtype:
            self._full = logits.new_full((count, self._vocab_size), -torch.inf)
        full = self._full[:count]
        full[:, self._ids] = logits
        return full


def empty(drafter: str, model_id: str) -> Proposal:
    """No drafts."""
    return replace(Proposal(()), drafter=drafter, proposer_model_id=model_id)
