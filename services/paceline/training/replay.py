"""Accepted length without a cluster: held-out samples replayed as greedy sessions would have gone.

A sample's answer is known, and so are the hidden states behind every one of its tokens; whatever a drafter proposes
at a position is compared with what came. Where the answers are the target's greedy ones, this is what greedy serving
accepts (up to near-ties); of sampled answers it is a lower bound of sorts: how often drafts equal the text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from paceline.drafters.hidden.network import HiddenDrafter
from paceline.training.blocks import Blocks, forward, known_of
from paceline.training.losses import LossWeights, score


@dataclass(slots=True)
class Replayed:
    """What held-out samples showed. K draft tokens."""

    draft_tokens: int
    committed: list[int] = field(default_factory=list)  # of each sample
    rounds: list[int] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)  # of each sample: sum over blocks of 1 + sum of prod (1 - TV)
    blocks: list[int] = field(default_factory=list)
    reached: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(0, np.int64)
    )  # [K] rounds whose drafts before held
    accepted: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # [K]

    @property
    def tau(self) -> float:
        """Committed tokens per round, greedy."""
        return sum(self.committed) / max(sum(self.rounds), 1)

    @property
    def tau_sampled(self) -> float:
        """Expected committed tokens per round at temperature 1 in rejection mode, over all positions."""
        return sum(self.expected) / max(sum(self.blocks), 1)

    @property
    def per_position(self) -> list[float]:
        """[K]: acceptance given that all before were accepted."""
        return [float(a) / max(int(r), 1) for a, r in zip(self.accepted, self.reached, strict=True)]


@torch.no_grad()
def replay(drafter: HiddenDrafter, samples: Iterable[Blocks]) -> Replayed:
    """Replay samples, each with all its anchors."""
    steps = drafter.config.draft_tokens
    out = Replayed(steps, reached=np.zeros(steps, np.int64), accepted=np.zeros(steps, np.int64))
    for blocks in samples:
        hidden = forward(drafter, [blocks])
        device = hidden.device
        drafts, _ = drafter.greedy(hidden.to(drafter.lm_head.dtype), blocks.anchors.to(device))
        right = ((drafts.cpu() == blocks.labels) & blocks.counted).int().cumprod(1).sum(1).numpy()
        _walk(out, blocks, right)
        known, counted, previous = known_of([blocks], drafter, LossWeights())
        markov = drafter.markov_head
        side = (markov.markov_w1(previous), markov.markov_w2.weight) if markov is not None else None
        overlap = torch.zeros(counted.shape, device=device)
        overlap[counted] = score(hidden[counted], drafter.lm_head, side, known, LossWeights()).overlap
        whole = counted.all(1)
        out.expected.append(float((1 + overlap[whole].cumprod(1).sum(1)).sum()))
        out.blocks.append(int(whole.sum()))
    return out


def _walk(out: Replayed, blocks: Blocks, right: NDArray[np.int64]) -> None:
    """From the first anchor on, by accepted drafts and one token more; rounds cut by the answer's end do not count."""
    by_place = {int(place): at for at, place in enumerate(blocks.places)}
    place, committed, rounds = int(blocks.places[0]), 0, 0
    while place in by_place:
        at = by_place[place]
        if not bool(blocks.counted[at].all()):
            break
        held = int(right[at])
        out.reached[: held + 1] += 1
        out.accepted[:held] += 1
        place, committed, rounds = place + held + 1, committed + held + 1, rounds + 1
    out.committed.append(committed)
    out.rounds.append(rounds)
