"""From a step's logits to its tokens: each row is sampled, drafted, or decides on a draft."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paceline.speculation import rejection
from paceline.speculation.cutting import survivors
from paceline.speculation.messages import SparseDistribution
from paceline.speculation.sampling import NOTHING, DrawFast, Row, require_finite, sample, shaped


@dataclass(frozen=True, slots=True)
class Drawn:
    """R tokens, and what else is to be told about them; all parallel."""

    tokens: list[int]
    distributions: list[SparseDistribution | None]  # what a draft was drawn from
    relaxed: list[bool]  # relaxed acceptance kept a draft that is not the target's own sample

    @classmethod
    def plain(cls, tokens: list[int]) -> Drawn:
        """Nothing but tokens."""
        return cls(tokens, [None] * len(tokens), [False] * len(tokens))

    def put(self, rows: Sequence[int], part: Drawn) -> None:
        """Write what some of the rows drew."""
        for place, row in enumerate(rows):
            self.tokens[row] = part.tokens[place]
            self.distributions[row] = part.distributions[place]
            self.relaxed[row] = part.relaxed[place]


def draw(logits: Tensor, rows: Sequence[Row], fast: DrawFast | None = None) -> Drawn:
    """One token per row, or NOTHING where its options leave none.

    A row that proposes draws a draft for rejection mode. A row with a draft yields that draft if it is accepted, and
    else the token that takes its place, which is another: so "equal to the draft" is "accepted" in every mode, and
    ``acceptance.agree`` serves them all. Greedy rows are sampled whatever the mode, there being nothing to reject.

    Args:
        logits: [R, V], any float type and device.
        rows: R descriptions.
        fast: see ``sampling.sample``.

    Raises:
        FloatingPointError: a row's logits hold NaN, or no finite value, before shaping.
    """
    kinds = [_kind(row) for row in rows]
    if not any(kinds):  # the usual case, without a copy of the logits
        return Drawn.plain(sample(logits, rows, fast).tolist())
    out = Drawn.plain([NOTHING] * len(rows))
    plain = [i for i, kind in enumerate(kinds) if kind is None]
    if plain:
        out.put(plain, Drawn.plain(sample(logits[plain], [rows[i] for i in plain], fast).tolist()))
    for kind in (_propose, _judge, _relax):
        mine = [i for i, each in enumerate(kinds) if each is kind]
        if mine:
            require_finite(logits[mine].amax(dim=1))
            left = torch.stack([shaped(logits[i], rows[i]) for i in mine])
            alive = torch.nonzero(left.amax(dim=1) > -math.inf).squeeze(1).tolist()
            if alive:
                part = kind(left[alive], [replace(rows[mine[i]], shaping=None) for i in alive])
                out.put([mine[i] for i in alive], part)
    return out


def _kind(row: Row) -> Callable[[Tensor, Sequence[Row]], Drawn] | None:
    """How a row is drawn, its logits shaped and finite; None if it is just sampled."""
    if row.draft is not None and row.params.relaxed_acceptance is not None:
        return _relax
    if row.params.greedy:
        return None
    if row.proposes:
        return _propose
    return _judge if row.draft is not None and row.draft.distribution is not None else None


def _propose(logits: Tensor, rows: Sequence[Row]) -> Drawn:
    drafts = rejection.propose(logits, rows)
    tokens = [draft.token for draft in drafts]
    return Drawn(tokens, [draft.distribution for draft in drafts], [False] * len(rows))


def _judge(logits: Tensor, rows: Sequence[Row]) -> Drawn:
    return Drawn.plain(rejection.judge(logits, rows))


def _relax(logits: Tensor, rows: Sequence[Row]) -> Drawn:
    out = Drawn.plain(sample(logits, rows).tolist())
    for i, row in enumerate(rows):
        assert row.draft is not None, row
        if row.draft.token != out.tokens[i] and likely_enough(logits[i], row, row.draft.token):
            out.tokens[i], out.relaxed[i] = row.draft.token, True
    return out


def likely_enough(logits: Tensor, row: Row, token: int) -> bool:
    """Relaxed acceptance: whether p(token) >= a · max p, a being the request's threshold and p the distribution after
    all options. A greedy request has no p to speak of; its threshold is applied at temperature 1.

    Args:
        logits: [V].
    """
    params = row.params
    assert params.relaxed_acceptance is not None, params
    if token >= logits.shape[0]:
        return False
    scaled = logits.to(torch.float64) / (params.temperature or 1.0)
    if not bool(scaled[token] >= scaled.amax() + math.log(params.relaxed_acceptance)):
        return False
    return params.greedy or not row.cut or bool((survivors(logits, params) == token).any())
