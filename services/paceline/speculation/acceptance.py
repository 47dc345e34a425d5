"""The acceptance rule of ``agreement`` mode.

The target samples its own token at every position with noise that is a pure function of (seed, choice, stream,
position, token). A draft token is accepted iff it equals that sample, and what is committed is always the target's
sample, so the output is the target's own whatever was drafted (Daliri, Musco, Suresh, arXiv 2408.07978, call it
drafter-invariant speculative decoding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.speculation.messages import TokenSource


@dataclass(frozen=True, slots=True)
class Agreement:
    """Tokens to commit, and how each came to be."""

    tokens: tuple[int, ...]
    sources: tuple[TokenSource, ...]
    accepted: int


def agree(draft: Sequence[int], samples: Sequence[int]) -> Agreement:
    """Compare drafted tokens d_1 … d_n with the target's samples y_1 … y_{n+1} of the same positions.

    ``samples[j]`` is the target's own token after the prefix and ``draft[:j]``; it is used only while all earlier
    drafts agreed, so a sample computed after a wrong draft is never looked at.
    """
    if len(samples) != len(draft) + 1:
        raise ValueError(f"samples: expected one more than the {len(draft)} draft tokens, got {len(samples)}")
    accepted = 0
    while accepted < len(draft) and draft[accepted] == samples[accepted]:
        accepted += 1
    if not draft:
        last = TokenSource.TARGET_ONLY
    elif accepted == len(draft):
        last = TokenSource.BONUS
    else:
        last = TokenSource.CORRECTED
    return Agreement(
        tokens=tuple(samples[: accepted + 1]),
        sources=(TokenSource.ACCEPTED,) * accepted + (last,),
        accepted=accepted,
    )
