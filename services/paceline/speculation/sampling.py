"""One sampler for target and drafter: logits in, tokens out, noise from coordinates.

Logits are shaped first if the request's options ask for it (``shaping``). The distribution is what top-k, top-p and
min-p leave of softmax(logits / temperature) (``cutting``). The token is ``argmax(logit / T - log E)`` over the
survivors, E being ``paceline.speculation.noise``; greedy is the same rule with no noise. Equal scores go to the lowest
token id.

A row's token depends on that row alone: every reduction whose rounding could depend on its neighbours runs per row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paceline.speculation import messages
from paceline.speculation.cutting import cuts, survivors
from paceline.speculation.noise import BLOCK, STREAM_TARGET, Noise
from paceline.speculation.params import SamplingParams
from paceline.speculation.shaping import RowShaping

NOTHING = -1  # in place of a token: the options leave none
UNSURE = -2  # in place of a token: a fast way cannot tell, and this module shall
SAMPLER_VERSION = messages.SAMPLER_VERSION

_FIRST_BLOCKS = 4  # blocks looked into at first; the winner is almost always in one of them
_MARGIN = 1e-9  # bounds and scores are float64: far above their rounding, far below any gap that matters


@dataclass(frozen=True, slots=True)
class Row:
    """Whose logits a row holds: the request's options and the coordinates of its noise."""

    params: SamplingParams
    position: int  # output position of the token to draw; 0 is the first generated token
    choice: int = 0
    shaping: RowShaping | None = None  # what the options do to the logits first; None leaves them as they are
    draft: messages.Draft | None = None  # to be judged by rejection or relaxed acceptance; see ``drawing``
    proposes: bool = False  # draws a draft for rejection mode

    @property
    def cut(self) -> bool:
        """Whether top-k, top-p or min-p leaves some tokens out."""
        return cuts(self.params)


Draw = Callable[[Tensor, Sequence[Row]], Tensor]
DrawFast = Draw  # draws what this module would, or answers UNSURE


def sample(logits: Tensor, rows: Sequence[Row], fast: DrawFast | None = None) -> Tensor:
    """Draw one token per row.

    Args:
        logits: [R, V], any float type and device.
        rows: R descriptions.
        fast: draws rows that are not shaped, if there is a faster way than this module's.

    Returns:
        int64 [R] on the CPU; NOTHING where shaping left no token.

    Raises:
        FloatingPointError: a row's logits hold NaN, or no finite value, before shaping.
    """
    if logits.shape[0] != len(rows):
        raise ValueError(f"rows: expected {logits.shape[0]}, one per row of logits, got {len(rows)}")
    out = torch.empty(len(rows), dtype=torch.int64)
    if not rows:
        return out
    if any(row.shaping is not None for row in rows):
        return _sample_shaped(logits, rows)
    if fast is not None:
        out = fast(logits, rows)
        unsure = torch.nonzero(out == UNSURE).squeeze(1).tolist()
        if unsure:
            out[unsure] = sample(logits[unsure], [rows[i] for i in unsure])
        return out
    cut = [i for i, row in enumerate(rows) if not row.params.greedy and row.cut]
    greedy = [i for i, row in enumerate(rows) if row.params.greedy]
    full = [i for i, row in enumerate(rows) if not row.params.greedy and not row.cut]
    kinds: list[tuple[list[int], Draw]] = [(cut, _sample_cut), (greedy, _sample_greedy), (full, _sample_full)]
    for indices, draw in kinds:
        if len(indices) == len(rows):  # the usual case, without a copy of the logits
            return draw(logits, rows)
        if indices:
            out[indices] = draw(logits[indices], [rows[i] for i in indices])
    return out


def shaped(logits: Tensor, row: Row) -> Tensor:
    """The logits a row's token is drawn from, for ``cutting.survivors`` and ``probabilities``.

    Args:
        logits: [V].

    Returns:
        float32 [V], all -inf if the options leave no token.
    """
    return logits.to(torch.float32) if row.shaping is None else row.shaping.apply(logits)


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """The exact distribution a token is drawn from; the reference the sampler is tested against.

    Args:
        logits: [V], shaped.

    Returns:
        float64 [V], summing to 1.
    """
    out = torch.zeros(logits.shape[0], dtype=torch.float64)
    if params.greedy:
        out[int(_lowest_argmax(logits[None])[0])] = 1.0
        return out
    if not cuts(params):
        return torch.softmax(logits.to(torch.float64) / params.temperature, dim=0)
    tokens = survivors(logits, params)
    out[tokens] = torch.softmax(logits[tokens].to(torch.float64) / params.temperature, dim=0)
    return out


def require_finite(peak: Tensor) -> None:
    """Raises FloatingPointError. peak: the rows' maxima, NaN where a row holds one."""
    if not bool(torch.isfinite(peak).all()):
        raise FloatingPointError("logits: expected no NaN and a finite maximum in every row; the model is broken")


def _lowest_argmax(scores: Tensor) -> Tensor:
    """[R, V] -> int64 [R]: the lowest index among the maxima (torch.argmax promises no particular one)."""
    peak = scores.amax(dim=1, keepdim=True)
    require_finite(peak)
    index = torch.arange(scores.shape[1], device=scores.device)
    return torch.where(scores == peak, index, scores.shape[1]).amin(dim=1).cpu()


def noise_of(rows: Sequence[Row], device: torch.device | str, stream: int = STREAM_TARGET) -> Noise:
    """The noise of so many rows in one stream."""
    return Noise(
        [row.params.seed for row in rows],
        [row.choice for row in rows],
        [row.position for row in rows],
        stream=stream,
        device=device,
    )


def _sample_shaped(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Rows with and without shaping: the latter are drawn as ever, the former from what their options leave."""
    out = torch.full((len(rows),), NOTHING)
    plain = [i for i, row in enumerate(rows) if row.shaping is None]
    if plain:
        out[plain] = sample(logits[plain], [rows[i] for i in plain])
    mine = [i for i, row in enumerate(rows) if row.shaping is not None]
    require_finite(logits[mine].amax(dim=1))
    left = torch.stack([shaped(logits[i], rows[i]) for i in mine])
    alive = torch.nonzero(left.amax(dim=1) > -math.inf).squeeze(1).tolist()
    if alive:
        described = [replace(rows[mine[i]], shaping=None) for i in alive]
        out[[mine[i] for i in alive]] = sample(left[alive], described)
    return out


def _sample_greedy(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    assert all(row.params.greedy for row in rows)
    return _lowest_argmax(logits)


def _sample_cut(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Noise is evaluated at the survivors only, for all rows in one go."""
    require_finite(logits.amax(dim=1))
    kept = [survivors(row_logits, row.params) for row_logits, row in zip(logits, rows, strict=True)]
    owner = torch.repeat_interleave(torch.tensor([len(tokens) for tokens in kept])).to(logits.device)
    tokens = torch.cat(kept)
    temperature = torch.tensor([row.params.temperature for row in rows], dtype=torch.float64, device=logits.device)
    scores = logits[owner, tokens].to(torch.float64) / temperature[owner]
    scores = (scores - torch.log(noise_of(rows, logits.device).at(owner, tokens))).cpu()
    out = torch.empty(len(rows), dtype=torch.int64)
    start = 0
    for i, ids in enumerate(kept):
        piece = scores[start : start + len(ids)]
        out[i] = ids.cpu()[piece == piece.amax()].amin()
        start += len(ids)
    return out


def _sample_full(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    temperature = torch.tensor([row.params.temperature for row in rows], dtype=torch.float64, device=logits.device)
    return race(logits, temperature, noise_of(rows, logits.device))


def race(logits: Tensor, temperature: Tensor, noise: Noise) -> Tensor:
    """Draw from softmax(logits / temperature): the exact argmax, looking only into blocks that can hold it.

    A block's best score is at most its best logit plus the noise of its least exponential. First the blocks with the
    highest such bounds are looked into, then every block whose bound reaches the best score seen.

    Args:
        logits: [R, V]; -inf never wins.
        temperature: float64 [R].
        noise: of R rows.

    Returns:
        int64 [R] on the CPU.
    """
    device, (count, vocab) = logits.device, logits.shape
    blocks = -(-vocab // BLOCK)
    if vocab % BLOCK:
        logits = torch.nn.functional.pad(logits, (0, blocks * BLOCK - vocab), value=-math.inf)
    grouped = logits.reshape(count, blocks, BLOCK)
    peaks = grouped.amax(dim=2)
    require_finite(peaks.amax(dim=1))
    row_index = torch.arange(count, device=device)[:, None]
    minima, offsets = noise.block_minima(row_index, torch.arange(blocks, device=device)[None])
    bounds = peaks.to(torch.float64) / temperature[:, None] - torch.log(minima)

    def look(owner: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        """Best score of each (row, block) pair and the lowest token that has it: [n] -> float64 [n], int64 [n]."""
        exponentials = noise.exponentials(owner, block, minima[owner, block], offsets[owner, block])
        scores = grouped[owner, block].to(torch.float64) / temperature[owner, None] - torch.log(exponentials)
        best = scores.amax(dim=1)
        index = torch.arange(BLOCK, device=device)
        lowest = torch.where(scores == best[:, None], index, BLOCK).amin(dim=1)
        return best, block * BLOCK + lowest

    first = torch.topk(bounds, min(_FIRST_BLOCKS, blocks), dim=1).indices
    owner = row_index.expand_as(first).flatten()
    found = [(owner, *look(owner, first.flatten()))]
    seen = torch.full((count,), -math.inf, dtype=torch.float64, device=device)
    seen.scatter_reduce_(0, owner, found[0][1], "amax")
    rest = (bounds + _MARGIN >= seen[:, None]).scatter_(1, first, False)
    owner, block = torch.nonzero(rest, as_tuple=True)
    if len(owner):
        found.append((owner, *look(owner, block)))
    owner, score, token = (torch.cat(parts) for parts in zip(*found, strict=True))
    seen.scatter_reduce_(0, owner, score, "amax")
    winner = torch.where(score == seen[owner], token, vocab)
    return torch.full((count,), vocab, device=device).scatter_reduce_(0, owner, winner, "amin").cpu()
