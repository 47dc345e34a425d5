"""What an answer looks like from outside: its text, and where it ends. A function of prompt and tokens alone.

Whoever rebuilds an answer from its committed tokens, in one go after a failover or round by round, gets the same text
and the same end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import Finish, FinishReason, SessionOpen
from paceline.speculation.stops import StopMatcher

PROMPT_TAIL = 8  # prompt tokens that the first word's spacing may depend on; enough to end inside the last turn


class Detokenizer(Protocol):
    """Incremental detokenisation, as ``runtime.text.Detokenizer`` does it."""

    def feed(self, token: int) -> str:
        """Text that became final with this token."""
        ...


class Answer:
    """The end rules and the text of one answer. Tokens past the end must not be pushed.

    A stop token (the model's end of sequence or one of the request's) counts as committed and has no text. The token
    that completes a stop string is committed; the text is cut before the stop string. At the length limit the text held
    back by stop matching is given out, and bytes of an incomplete character are not.
    """

    __slots__ = ("_detokenizer", "_limit", "_matcher", "_stop_tokens", "committed", "finish")

    def __init__(self, opening: SessionOpen, *, limit: int, eos: Sequence[int], detokenizer: Detokenizer) -> None:
        assert limit >= 1, limit
        params = opening.sampling
        self._stop_tokens = params.ends(eos)
        self._limit = limit
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(params.stop)
        self.committed = 0
        self.finish: Finish | None = None
        for token in opening.tokens[: opening.prompt_len][-PROMPT_TAIL:]:
            detokenizer.feed(token)

    @property
    def remaining(self) -> int:
        """Tokens that may still be committed."""
        return 0 if self.finish else self._limit - self.committed

    def push(self, token: int) -> str:
        """Commit a token; returns the text that became final. See ``finish`` afterwards."""
        assert self.finish is None, f"token {token} after the end: {self.finish}"
        self.committed += 1
        if token in self._stop_tokens:
            self.finish = Finish(FinishReason.STOP, stop_token_id=token)
            return self._matcher.flush()
        text = self._matcher.feed(self._detokenizer.feed(token))
        if self._matcher.stopped_by is not None:
            self.finish = Finish(FinishReason.STOP, stop_string=self._matcher.stopped_by)
        elif self.committed == self._limit:
            self.finish = Finish(FinishReason.LENGTH)
            text += self._matcher.flush()
        return text


def resume(
    opening: SessionOpen, *, context_length: int, eos: Sequence[int], detokenizer: Callable[[], Detokenizer]
) -> Answer:
    """The answer a session is opened with: empty, or as far as its committed tokens go.

    Raises:
        InvalidRequest: the committed tokens go on after the answer's end.
    """
    room = context_length - opening.prompt_len
    limit = min(opening.sampling.max_tokens, room)
    answer = Answer(opening, limit=limit, eos=eos, detokenizer=detokenizer())
    for token in opening.tokens[opening.prompt_len :]:
        if answer.finish is not None:
            expected = f"nothing after the answer's end ({answer.finish.reason.name} after {answer.committed} tokens)"
            got = f"{len(opening.tokens) - opening.prompt_len} committed tokens"
            raise InvalidRequest("tokens", expected=expected, got=got)
        answer.push(token)
    return answer
