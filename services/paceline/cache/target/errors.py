"""What can be wrong with a stored sample."""

from __future__ import annotations

from paceline.speculation.errors import PacelineError


class CorruptSample(PacelineError):
    """A sample cannot be trusted. The others of its cache can."""

    def __init__(self, *, folder: object, sample_id: int, key: int | None, shard: str, part: str, what: str) -> None:
        self.sample_id = sample_id
        self.key = key
        self.shard = shard
        self.part = part
        self.what = what
        named = "" if key is None or key == sample_id else f" (key {key})"
        super().__init__(f"{folder}: sample {sample_id}{named} in {shard}: {part}: {what}")
