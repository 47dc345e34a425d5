"""How answers are drawn: which conversation gets which sampling, as a function of the conversation alone."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from paceline.speculation.errors import InvalidRequest
from paceline.speculation.params import SamplingParams
from paceline.training.capture.conversations import Conversation

MAX_SAMPLES = 256


@dataclass(frozen=True, slots=True)
class Recipe:
    """The answers' share of what fixes a cache."""

    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    greedy_share: float = 0.0  # of the conversations; a greedy one is answered once, for it would say the same again
    samples: int = 1  # answers of each other conversation
    max_tokens: int = 512  # of an answer
    max_length: int = 4096  # of prompt and answer together

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise InvalidRequest("samples", expected=f"1 to {MAX_SAMPLES}", got=self.samples)
        if not 0 <= self.greedy_share <= 1:
            raise InvalidRequest("greedy_share", expected="0 to 1", got=self.greedy_share)
        if self.max_length < 2:
            raise InvalidRequest("max_length", expected="2 or more", got=self.max_length)
        self._params(self.temperature, 0, self.max_tokens)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def choices(self, conversation: Conversation) -> range:
        """The answers wanted, by number."""
        return range(1 if self.greedy(conversation) else self.samples)

    def greedy(self, conversation: Conversation) -> bool:
        """Whether a conversation is answered greedily."""
        return self.temperature == 0 or self._draw(conversation, "greedy") < self.greedy_share * 2**64

    def sampling(self, conversation: Conversation, turn: int, room: int) -> SamplingParams:
        """Options of a turn's answer; ``room`` is what prompt and limits leave.

        Each turn has a seed of its own: answers that share a step should not share their noise. The service gives the
        same answer for the same options, seed and choice.
        """
        temperature = 0.0 if self.greedy(conversation) else self.temperature
        return self._params(temperature, self._draw(conversation, f"turn {turn}"), min(self.max_tokens, room))

    def _params(self, temperature: float, seed: int, max_tokens: int) -> SamplingParams:
        return SamplingParams(
            temperature=temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p, seed=seed,
            max_tokens=max_tokens,
        )  # fmt: skip

    def _draw(self, conversation: Conversation, purpose: str) -> int:
        """64 bits that are the same for the same conversation."""
        text = f"{self.seed} {conversation.digest} {purpose}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
