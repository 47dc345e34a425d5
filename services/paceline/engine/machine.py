"""What kind of processor this is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Processor:
    """As the operating system describes it; empty where it does not."""

    vendor: str
    model: str
    flags: frozenset[str]


@lru_cache(maxsize=1)
def processor() -> Processor:
    """The processor of this machine."""
    source = Path("/proc/cpuinfo")
    found: dict[str, str] = {}
    for line in source.read_text().splitlines() if source.is_file() else []:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    model = " ".join(found.get(key, "") for key in ("cpu family", "model", "stepping", "model name"))
    return Processor(found.get("vendor_id", "unknown"), model, frozenset(found.get("flags", "").split()))
