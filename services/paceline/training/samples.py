"""Samples out of target caches: which are trained on, in what order, and what a step is made of.

The order is a function of (seed, step) alone, so a resumed run reads what the killed one would have read.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.cache.target import CorruptSample, Sample, TargetCache
from paceline.speculation.errors import InvalidRequest

HELD_OUT_EVERY = 40  # one sample in so many is never trained on
_TOLD = 3  # lost samples told by name


@dataclass(frozen=True, slots=True)
class Place:
    """A sample: of which cache, where in it."""

    cache: int
    sample_id: int


class SampleSet:
    """The samples of several caches of one target, split into those trained on and those held out.

    A sample is held out by a checksum of its tokens' number and place, so that it is in every run over these caches.
    """

    def __init__(self, folders: Sequence[Path], *, held_out_every: int = HELD_OUT_EVERY) -> None:
        """Raises InvalidRequest if there are none, or if they are of different layers or targets."""
        if not folders:
            raise InvalidRequest("cache", expected="at least one folder", got=[])
        self.caches = [TargetCache.open(folder) for folder in folders]
        self.manifest = self.caches[0].manifest
        for folder, cache in zip(folders, self.caches, strict=True):
            for field in ("target_layer_ids", "hidden_size", "target_model"):
                if getattr(cache.manifest, field) != getattr(self.manifest, field):
                    raise InvalidRequest(
                        f"cache.{field}",
                        expected=f"{getattr(self.manifest, field)}, as in {folders[0]}",
                        got=f"{getattr(cache.manifest, field)} in {folder}",
                    )
        self.places = [Place(at, index) for at, cache in enumerate(self.caches) for index in range(len(cache))]
        self.lengths = np.concatenate([cache.lengths for cache in self.caches]).astype(np.int64)
        self.lost: dict[int, CorruptSample] = {}  # those that turned out not to be as they were written
        held = [at for at, place in enumerate(self.places) if _hash(place) % held_out_every == 0]
        self.held_out = tuple(held)
        self.trained = tuple(sorted(set(range(len(self.places))) - set(held)))
        if not self.trained or not self.held_out:
            raise InvalidRequest("cache", expected=f"about {held_out_every} samples or more", got=len(self.places))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample | None:
        """None for a sample that cannot be trusted; ``paceline cache verify`` says why."""
        place = self.places[index]
        try:
            return self.caches[place.cache][place.sample_id]
        except CorruptSample as error:
            self.lost[index] = error.with_traceback(None)  # it would keep all it passed through
            return None

    def tell_lost(self, say: Callable[[str], None]) -> None:
        """Say which samples were left out so far, if any were; of many the first."""
        for error in list(self.lost.values())[:_TOLD]:
            say(f"left out: {error}")
        if len(self.lost) > _TOLD:
            say(f"… and {len(self.lost) - _TOLD} more; `paceline cache verify` names them")

    def order(self, seed: int, step: int, count: int) -> list[int]:
        """The ``count`` samples of a step: every sample comes once before any comes again."""
        out: list[int] = []
        total = len(self.trained)
        at = step * count
        while len(out) < count:
            epoch, offset = divmod(at + len(out), total)
            shuffled = np.random.default_rng((seed, epoch)).permutation(total)
            out.extend(self.trained[each] for each in shuffled[offset : offset + count - len(out)])
        return out


def _hash(place: Place) -> int:
    return zlib.crc32(f"{place.cache}:{place.sample_id}".encode())


def first_predicted(sample: Sample) -> int:
    """The first position whose next token counts; len(sample) if none does."""
    counted = np.flatnonzero(sample.loss_mask[1:])
    return int(counted[0]) if len(counted) else len(sample.input_ids)


def anchors_of(sample: Sample, limit: int | None, draw: np.random.Generator | None) -> NDArray[np.int64]:
    """Positions blocks start at, ascending: those with a token before them whose next token counts.

    Args:
        limit: at most so many, drawn without replacement; None takes all.
    """
    places = np.flatnonzero(sample.loss_mask[1:])
    places = places[places > 0]
    if limit is not None and len(places) > limit:
        assert draw is not None, "a choice needs a generator"
        places = np.sort(draw.choice(places, limit, replace=False))
    return places


def bfloat16(bits: NDArray[np.uint16]) -> Tensor:
    """The bits of bfloat16 numbers as a tensor, copied."""
    return torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16)
