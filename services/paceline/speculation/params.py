"""What a request may ask for: sampling and speculation options, validated where they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, IntEnum

from paceline.speculation.errors import InvalidRequest, Unsupported

SEED_LIMIT = 2**64
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_STOP_TOKEN_IDS = 64


class VerificationMode(IntEnum):
    """How the target decides on draft tokens (values as in the proto)."""

    AGREEMENT = 1
    REJECTION = 2


class SpeculationMode(Enum):
    """Who decides how many tokens are drafted."""

    AUTO = "auto"
    OFF = "off"
    FIXED = "fixed"


def _require_real(field: str, value: float, *, low: float, high: float, expected: str, open_low: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value > high or value < low or (open_low and value == low):
        raise InvalidRequest(field, expected=expected, got=value)


def _require_int(field: str, value: int, *, low: int, high: int, expected: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequest(field, expected=expected, got=value)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Everything that shapes the distribution of a token, and when to stop. Fully resolved: no defaults left open.

    Raises InvalidRequest naming the field, or Unsupported for what is not offered yet.
    """

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps every token
    top_p: float = 1.0  # mass kept, after top_k
    min_p: float = 0.0  # least probability kept, relative to the likeliest token
    seed: int = 0  # unsigned 64 bit
    max_tokens: int = 16  # tokens to commit, at most
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    verification_mode: VerificationMode = VerificationMode.AGREEMENT

    def __post_init__(self) -> None:
        _require_real("temperature", self.temperature, low=0, high=100, expected="a number from 0 to 100")
        _require_int("top_k", self.top_k, low=0, high=2**31, expected="a whole number, 0 for no limit")
        _require_real("top_p", self.top_p, low=0, high=1, expected="a number above 0, up to 1", open_low=True)
        _require_real("min_p", self.min_p, low=0, high=1, expected="a number from 0 to 1")
        _require_int("seed", self.seed, low=0, high=SEED_LIMIT - 1, expected="a whole number from 0 to 2^64 - 1")
        _require_int("max_tokens", self.max_tokens, low=1, high=2**31, expected="a whole number, 1 or more")
        self._check_stops()
        if self.verification_mode is not VerificationMode.AGREEMENT:
            raise Unsupported("verification_mode", got=self.verification_mode.name.lower(), hint="use agreement")

    def _check_stops(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest("stop", expected=f"at most {MAX_STOP_STRINGS} strings", got=len(self.stop))
        for text in self.stop:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_STRING_CHARS:
                raise InvalidRequest("stop", expected=f"strings of 1 to {MAX_STOP_STRING_CHARS} characters", got=text)
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidRequest(
                "stop_token_ids", expected=f"at most {MAX_STOP_TOKEN_IDS} ids", got=len(self.stop_token_ids)
            )
        for token in self.stop_token_ids:
            _require_int("stop_token_ids", token, low=0, high=2**32 - 1, expected="token ids")

    @property
    def greedy(self) -> bool:
        """Whether the target's token is the argmax, with no noise."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class SpeculationParams:
    """What a request asks of speculation. ``max_draft_tokens`` is K; None leaves it to the server."""

    mode: SpeculationMode = SpeculationMode.AUTO
    max_draft_tokens: int | None = None
    drafter: str = ""

    def __post_init__(self) -> None:
        if self.max_draft_tokens is not None:
            _require_int(
                "speculation.max_draft_tokens",
                self.max_draft_tokens,
                low=0,
                high=64,
                expected="a whole number, 0 to 64",
            )
        if self.mode is SpeculationMode.FIXED and self.max_draft_tokens is None:
            raise InvalidRequest(
                "speculation.max_draft_tokens", expected="a value with speculation.mode fixed", got=None
            )
        if len(self.drafter) > 64:
            raise InvalidRequest("speculation.drafter", expected="a name of at most 64 characters", got=self.drafter)
