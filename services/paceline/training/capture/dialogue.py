"""One conversation with the target: from turn to turn, as a client of the service would lead it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paceline.runtime.text import TextCodec
from paceline.speculation.params import SamplingParams
from paceline.training.capture.answers import Answer
from paceline.training.capture.conversations import Conversation
from paceline.training.capture.recipe import Recipe

_TAIL = 8  # prompt tokens that the spacing of an answer's first word may depend on, as the service has it


@dataclass(frozen=True, slots=True)
class Ask:
    """A turn to be answered."""

    session_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    choice: int


class Dialogue:
    """The answers of one conversation, one choice of them.

    Args:
        room: tokens that prompt and answer may have together.
        ends: the target's end-of-sequence tokens.
    """

    def __init__(
        self,
        conversation: Conversation,
        choice: int,
        *,
        recipe: Recipe,
        codec: TextCodec,
        room: int,
        ends: Iterable[int],
    ) -> None:
        self._conversation, self._choice, self._recipe = conversation, choice, recipe
        self._codec, self._room, self._ends = codec, room, frozenset(ends)
        self._said: list[str] = []  # the answers' text

    @property
    def turn(self) -> int:
        """The turn to be answered next."""
        return len(self._said)

    def ask(self) -> Ask | None:
        """The next turn; None if there is none, or no room for an answer to it."""
        if self.turn == len(self._conversation.turns):
            return None
        prompt = self._prompt()
        room = self._room - len(prompt)
        if room < 1:
            return None
        session_id = f"{self._conversation.digest}-{self._choice}-{self.turn}"
        return Ask(session_id, prompt, self._recipe.sampling(self._conversation, self.turn, room), self._choice)

    def take(self, ask: Ask, tokens: Sequence[int]) -> Answer:
        """The target's answer to the turn asked about."""
        turn, ended = self.turn, tokens[-1] in self._ends
        self._said.append(self._text(ask.prompt, tokens[:-1] if ended else tokens))
        return Answer(
            conversation=self._conversation.digest,
            choice=self._choice,
            turn=turn,
            last=self.ask() is None,
            seed=ask.sampling.seed,
            temperature=ask.sampling.temperature,
            prompt=ask.prompt,
            tokens=tuple(tokens),
            finish="stop" if ended else "length",
        )

    def resume(self, answer: Answer) -> None:
        """An earlier run's answer to the next turn."""
        assert answer.turn == self.turn, (answer.place, self.turn)
        ended = answer.tokens[-1] in self._ends
        self._said.append(self._text(answer.prompt, answer.tokens[:-1] if ended else answer.tokens))

    def _prompt(self) -> tuple[int, ...]:
        """As the service makes it: the template writes special tokens itself."""
        messages = [{"role": "system", "content": self._conversation.system}] if self._conversation.system else []
        for user, assistant in zip(self._conversation.turns, self._said, strict=False):
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        messages.append({"role": "user", "content": self._conversation.turns[self.turn]})
        return tuple(self._codec.encode(self._codec.render_chat(messages), special=False))

    def _text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        detokenizer = self._codec.detokenizer()
        for token in prompt[-_TAIL:]:
            detokenizer.feed(token)
        return "".join(detokenizer.feed(token) for token in tokens)
