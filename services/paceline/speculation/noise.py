"""The noise of sampling: Exp(1) variables, a pure function of (seed, choice, stream, position, token).

Gumbel-max sampling, ``argmax(log p + gumbel)``, is the same as an exponential race, ``argmin(E / p)`` with
``gumbel = -log E``. Whoever knows the coordinates knows the noise, so a drafter and a target that never exchange a
probability draw with the same one.

The integers come from Philox 4×32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), checked
against Random123's known answers. The exponentials are laid over the vocabulary in two levels, so that the winner is
found without evaluating all of them:

- tokens are grouped in blocks of ``BLOCK``. The least of n independent Exp(1) variables is Exp(n), and which one it is
  is uniform: level 0 draws both for a block;
- given the least, the others are the least plus independent Exp(1) (the exponential has no memory): level 1 draws
  those, for the tokens somebody asks about.

The joint law is that of independent Exp(1) variables, one per token. A uniform v is ``(word + 1/2) / 2^n`` and the
exponential is ``-log1p(-v)``, so the fine end of the grid lies at the small exponentials: where winners are. Level 0
has 53 bits, level 1 has 32. All arithmetic on integers is exact and the same on every device; floats are float64.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BLOCK = 128  # tokens per block; a power of two
STREAM_TARGET = 0  # of the target's own samples; in agreement mode the drafter shares it
STREAM_DRAFT = 1  # rejection mode's: what a draft is drawn with,
STREAM_ACCEPT = 2  # whether it is kept,
STREAM_RECOVERY = 3  # and what takes its place

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(_MULTIPLIERS, device=device), torch.tensor(_WEYL, device=device)


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox 4×32-10.

    Args:
        counter: int64 [4, …], words in 0 … 2^32 - 1.
        key: int64 [2, …], likewise; broadcasts against the counter's trailing dimensions.

    Returns:
        int64 [4, …], words in 0 … 2^32 - 1.
    """
    multipliers, weyl = _constants(counter.device)
    multipliers = multipliers.view(2, *(1,) * (counter.dim() - 1))
    weyl = weyl.view(2, *(1,) * (key.dim() - 1))
    even, odd = counter[0::2], counter[1::2]  # words a and c, words b and d
    rounds = torch.arange(_ROUNDS, device=key.device).view(_ROUNDS, *(1,) * key.dim())
    for round_key in (key + rounds * weyl).bitwise_and_(_MASK):
        # A 32 × 32 bit product wraps in int64, but its 64 bits are right; the mask drops the sign extension.
        products = (even * multipliers).flip(0)
        even = (products >> 32).bitwise_and_(_MASK).bitwise_xor_(odd).bitwise_xor_(round_key)
        odd = products.bitwise_and_(_MASK)
    return torch.stack((even, odd), dim=1).flatten(0, 1)


def _uniform32(words: Tensor) -> Tensor:
    return (words.to(torch.float64) + 0.5) * 2.0**-32


def _uniform53(high: Tensor, low: Tensor) -> Tensor:
    return (((high << 21) | (low >> 11)).to(torch.float64) + 0.5) * 2.0**-53


class Noise:
    """The noise of R rows, each with coordinates (seed, choice, position), in one stream.

    Args:
        seeds: R unsigned 64-bit integers.
        choices: R choice indices.
        positions: R output positions (0 is the first generated token).
        stream: which of the request's disjoint streams; see the STREAM constants.
    """

    def __init__(
        self,
        seeds: list[int],
        choices: list[int],
        positions: list[int],
        *,
        stream: int = STREAM_TARGET,
        device: torch.device | str = "cpu",
    ) -> None:
        words = [(seed & _MASK, seed >> 32) for seed in seeds]
        self._key = torch.tensor(words, dtype=torch.int64, device=device).T.reshape(2, -1)  # [2, R]
        self._place = torch.tensor([positions, choices], dtype=torch.int64, device=device)  # [2, R]
        self._stream = stream

    def _words(self, index: Tensor, rows: Tensor, level: int) -> Tensor:
        """int64 words [4, …] of broadcastable index and rows; rows may stay unexpanded to keep keys small."""
        position, choice = self._place[:, rows] + torch.zeros_like(index)
        tag = torch.full_like(position, 2 * self._stream + level)
        return philox(torch.stack((index + torch.zeros_like(position), position, choice, tag)), self._key[:, rows])

    def uniforms(self) -> Tensor:
        """One number in (0, 1) per row: float64 [R], of 53 bits."""
        rows = torch.arange(self._place.shape[1], device=self._place.device)
        high, low, _, _ = self._words(torch.zeros_like(rows), rows, 0)
        return _uniform53(high, low)

    def block_minima(self, rows: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Level 0: the least exponential of each block, and which of its tokens has it.

        Args:
            rows, blocks: int64, broadcastable against each other.

        Returns:
            (float64 minima > 0, int64 offsets in 0 … BLOCK - 1), of the broadcast shape.
        """
        high, low, offset, _ = self._words(blocks, rows, 0)
        return -torch.log1p(-_uniform53(high, low)) / BLOCK, offset & (BLOCK - 1)

    def exponentials(self, rows: Tensor, blocks: Tensor, minima: Tensor, offsets: Tensor) -> Tensor:
        """Level 1: the exponentials of all tokens of some blocks, given level 0.

        Args:
            rows, blocks, minima, offsets: [n].

        Returns:
            float64 [n, BLOCK].
        """
        quads = blocks[:, None] * (BLOCK // 4) + torch.arange(BLOCK // 4, device=blocks.device)
        words = self._words(quads, rows[:, None], 1).permute(1, 2, 0).reshape(-1, BLOCK)
        above = minima[:, None] - torch.log1p(-_uniform32(words))
        return above.scatter_(1, offsets[:, None], minima[:, None])

    def at(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """The exponential of each (row, token) pair; int64 [n] twice -> float64 [n]."""
        minima, offsets = self.block_minima(rows, tokens // BLOCK)
        words = self._words(tokens >> 2, rows, 1)
        word = words.gather(0, (tokens & 3)[None]).squeeze(0)
        return torch.where(tokens & (BLOCK - 1) == offsets, minima, minima - torch.log1p(-_uniform32(word)))
