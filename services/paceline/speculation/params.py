"""What a request may ask for: sampling and speculation options, validated where they are made."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum

from paceline.speculation.errors import InvalidRequest

SEED_LIMIT = 2**64
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIASES = 1024
MAX_BAD_WORDS = 256
MAX_BAD_WORD_TOKENS = 32
MAX_LOGPROBS = 20
MAX_GRAMMAR_CHARS = 65536


class VerificationMode(IntEnum):
    """How the target decides on draft tokens (values as in the proto)."""

    AGREEMENT = 1
    REJECTION = 2


class SpeculationMode(Enum):
    """Who decides how many tokens are drafted."""

    AUTO = "auto"
    OFF = "off"
    FIXED = "fixed"


class GrammarKind(Enum):
    """What language a grammar is written in."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like. Whether ``source`` is well formed is for whoever compiles it to say."""

    kind: GrammarKind
    source: str

    def __post_init__(self) -> None:
        if not 0 < len(self.source) <= MAX_GRAMMAR_CHARS:
            expected = f"1 to {MAX_GRAMMAR_CHARS} characters"
            raise InvalidRequest(f"grammar.{self.kind.value}", expected=expected, got=f"{len(self.source)} characters")


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

    Raises InvalidRequest naming the field.
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
    repetition_penalty: float = 1.0  # divides positive logits of tokens seen in prompt or output, multiplies others
    presence_penalty: float = 0.0  # off the logit of tokens seen in the output
    frequency_penalty: float = 0.0  # off it, for each time they were seen
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit), each token once
    min_tokens: int = 0  # no token that ends the answer before so many
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that are never completed
    logprobs: int | None = None  # likeliest tokens to report beside each committed one; None reports nothing
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    relaxed_acceptance: float | None = None  # lossy: accept drafts at least so likely, of the likeliest

    def __post_init__(self) -> None:
        _require_real("temperature", self.temperature, low=0, high=100, expected="a number from 0 to 100")
        _require_int("top_k", self.top_k, low=0, high=2**31, expected="a whole number, 0 for no limit")
        _require_real("top_p", self.top_p, low=0, high=1, expected="a number above 0, up to 1", open_low=True)
        _require_real("min_p", self.min_p, low=0, high=1, expected="a number from 0 to 1")
        _require_int("seed", self.seed, low=0, high=SEED_LIMIT - 1, expected="a whole number from 0 to 2^64 - 1")
        _require_int("max_tokens", self.max_tokens, low=1, high=2**31, expected="a whole number, 1 or more")
        self._check_stops()
        self._check_shaping()

    def _check_shaping(self) -> None:
        penalty = self.repetition_penalty
        _require_real("repetition_penalty", penalty, low=0, high=10, expected="above 0, up to 10", open_low=True)
        for field in ("presence_penalty", "frequency_penalty"):
            _require_real(field, getattr(self, field), low=-2, high=2, expected="a number from -2 to 2")
        for token, bias in self.logit_bias:
            _require_int("logit_bias", token, low=0, high=2**32 - 1, expected="token ids")
            _require_real("logit_bias", bias, low=-100, high=100, expected="numbers from -100 to 100")
        if len(dict(self.logit_bias)) != len(self.logit_bias) or len(self.logit_bias) > MAX_LOGIT_BIASES:
            expected = f"at most {MAX_LOGIT_BIASES} tokens, each once"
            raise InvalidRequest("logit_bias", expected=expected, got=len(self.logit_bias))
        expected = f"a whole number up to max_tokens, {self.max_tokens}"
        _require_int("min_tokens", self.min_tokens, low=0, high=self.max_tokens, expected=expected)
        words = self.bad_words
        if len(words) > MAX_BAD_WORDS or not all(0 < len(word) <= MAX_BAD_WORD_TOKENS for word in words):
            expected = f"at most {MAX_BAD_WORDS} sequences of 1 to {MAX_BAD_WORD_TOKENS} tokens"
            raise InvalidRequest("bad_words", expected=expected, got=[len(word) for word in words[:MAX_BAD_WORDS]])
        for field in ("logprobs", "prompt_logprobs"):
            if getattr(self, field) is not None:
                expected = f"a whole number from 0 to {MAX_LOGPROBS}"
                _require_int(field, getattr(self, field), low=0, high=MAX_LOGPROBS, expected=expected)
        if self.grammar is not None and self.ignore_eos:
            hint = "an answer ends where its grammar does"
            raise InvalidRequest("ignore_eos", expected="False with a grammar", got=True, hint=hint)
        if self.relaxed_acceptance is not None:
            value, expected = self.relaxed_acceptance, "a number above 0, up to 1"
            _require_real("relaxed_acceptance", value, low=0, high=1, expected=expected, open_low=True)
            if self.verification_mode is not VerificationMode.AGREEMENT:
                raise InvalidRequest("relaxed_acceptance", expected="verification_mode agreement beside it", got=value)

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

    @property
    def shapes(self) -> bool:
        """Whether some option changes logits before temperature, see ``shaping``. A grammar does so by itself."""
        penalties = self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return penalties or bool(self.logit_bias) or self.min_tokens > 0 or bool(self.bad_words)

    @property
    def rejects(self) -> bool:
        """Whether drafts are judged by what they were drawn from. Greedy, rejection mode is agreement."""
        return self.verification_mode is VerificationMode.REJECTION and not self.greedy

    def ends(self, eos: Iterable[int]) -> frozenset[int]:
        """Tokens that end the answer. ``eos``: the model's own end-of-sequence tokens."""
        return frozenset(self.stop_token_ids) | (frozenset() if self.ignore_eos else frozenset(eos))


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
