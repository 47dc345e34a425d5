"""One answer put together from the messages of one stream or several, checked to be whole: nothing lost or repeated."""

from __future__ import annotations

from paceline.v1 import generation_pb2

from paceline_client._errors import ServerError
from paceline_client._types import Chunk, Finish, SpeculationMetrics, Started, Token, TokenLogprobs, TokenSource, Usage
from paceline_client._wire import finish_of, logprobs_of, metrics_of, source_of, started_of, usage_of


class Assembly:
    """The tokens and the text received, and where the session stands.

    Invariant: ``tokens[i].index == i``; ``text`` is what the server said for exactly those tokens.
    """

    def __init__(self) -> None:
        self.started: Started | None = None  # of the first stream: the answer starts once
        self.session_id = ""
        self.numerics_class = ""
        self.lease_epoch = 0
        self.class_changed = False
        self.lossy = False
        self.tokens: list[Token] = []
        self.prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        self.finish: Finish | None = None
        self.usage: Usage | None = None
        self.metrics: SpeculationMetrics | None = None
        self._text: list[str] = []
        self._starts: dict[int, int] = {}  # index of a chunk's first token -> its place in _text
        self._rounds: list[generation_pb2.Tokens] = []  # of the stream under way, tokens and text left out
        self._before = SpeculationMetrics()  # counted from the rounds of lost streams
        self._open = False  # the stream under way has started

    @property
    def text(self) -> str:
        """All text received."""
        return "".join(self._text)

    def lost(self) -> None:
        """The stream under way is gone, and its totals with it: count its rounds ourselves."""
        self._open = False
        self._before = _counted(self._before, self._rounds, self.tokens)
        self._rounds = []

    def start(self, message: generation_pb2.Started) -> None:
        """Take a Started. Only the first starts the answer.

        Further ones move it: the first of a resumed stream, and one in the middle of a stream if the router had to
        move the session to another numerics class.
        """
        self._open = True
        if self.started is None:
            self.started = started_of(message)
        elif message.seed != self.started.seed:
            raise self._broken(f"seed: expected {self.started.seed} again, got {message.seed}")
        elif message.class_changed or message.numerics_class != self.numerics_class:
            self.class_changed = True
        self.session_id = message.session_id
        self.numerics_class = message.numerics_class
        self.lease_epoch = message.lease_epoch

    def add(self, message: generation_pb2.Tokens) -> Chunk | None:
        """Take what a round committed; None if it brings nothing, or nothing that was not here already."""
        if not self._open:
            raise self._broken("Tokens came before Started")
        if len(message.sources) != len(message.token_ids):
            raise self._broken(f"sources: expected {len(message.token_ids)}, got {len(message.sources)}")
        if len(message.logprobs) not in {0, len(message.token_ids)}:
            raise self._broken(f"logprobs: expected {len(message.token_ids)}, got {len(message.logprobs)}")
        self.lease_epoch = max(self.lease_epoch, message.lease_epoch)
        received = len(self.tokens)
        if message.index > received:
            raise self._broken(f"index: expected {received}, the tokens received so far, got {message.index}")
        known = received - message.index
        if known >= len(message.token_ids) and (known or not message.text):
            self._check_repeat(message, len(message.token_ids))
            return None
        text = message.text
        if known:
            self._check_repeat(message, known)
            text = self._unseen(message)
        tokens = self._tokens(message, known)
        self.lossy |= message.lossy
        prompt_logprobs = () if self.prompt_logprobs else logprobs_of(message.prompt_logprobs)
        self.prompt_logprobs = self.prompt_logprobs or prompt_logprobs
        self._starts[received] = len(self._text)
        self._text.append(text)
        self.tokens.extend(tokens)
        self._rounds.append(
            generation_pb2.Tokens(drafted=message.drafted, verified=message.verified, accepted=message.accepted)
        )
        return Chunk(
            index=received,
            tokens=tokens,
            text=text,
            round_id=message.round_id,
            drafter=message.drafter,
            drafted=message.drafted,
            verified=message.verified,
            accepted=message.accepted,
            lossy=message.lossy,
            prompt_logprobs=prompt_logprobs,
            confidence=tuple(message.confidence),
        )

    def complete(self, message: generation_pb2.Completed) -> None:
        """Take the end of the answer."""
        if not self._open:
            raise self._broken("Completed came before Started")
        self.finish = finish_of(message.finish)
        self.usage = usage_of(message.usage)
        self.lossy |= message.lossy
        self.metrics = metrics_of(message.speculation, self._before)

    def _tokens(self, message: generation_pb2.Tokens, skip: int) -> tuple[Token, ...]:
        tokens = []
        logprobs = logprobs_of(message.logprobs)
        for offset in range(skip, len(message.token_ids)):
            source = source_of(message.sources[offset])
            accepted = source is TokenSource.ACCEPTED
            tokens.append(
                Token(
                    id=message.token_ids[offset],
                    index=message.index + offset,
                    source=source,
                    proposer_model_id=message.proposer_model_id if accepted else None,
                    verifier_model_id=message.verifier_model_id,
                    round_id=message.round_id,
                    drafter=message.drafter,
                    logprobs=logprobs[offset] if logprobs else None,
                )
            )
        return tuple(tokens)

    def _check_repeat(self, message: generation_pb2.Tokens, count: int) -> None:
        have = [token.id for token in self.tokens[message.index : message.index + count]]
        if have != list(message.token_ids[:count]):
            raise self._broken(f"token_ids: expected {have} again at index {message.index}, got other tokens")

    def _unseen(self, message: generation_pb2.Tokens) -> str:
        """The text of a partly repeated round less what was received for the repeated tokens.

        Text is a function of tokens, so it can be cut where both begin at the same token.
        """
        place = self._starts.get(message.index)
        seen = None if place is None else "".join(self._text[place:])
        if seen is None or not message.text.startswith(seen):
            raise self._broken(f"text: expected to go on from the {len(self.tokens)} tokens received, got a repeat")
        return message.text[len(seen) :]

    def _broken(self, what: str) -> ServerError:
        request_id = self.started.request_id if self.started else "of no id yet"
        return ServerError(f"{what}; the server breaks the protocol, report it with request {request_id}")


def _counted(
    before: SpeculationMetrics, rounds: list[generation_pb2.Tokens], tokens: list[Token]
) -> SpeculationMetrics:
    verify = [each for each in rounds if each.verified]
    sources = [token.source for token in tokens]  # tokens are never taken back, so these counts are absolute
    return SpeculationMetrics(
        rounds=before.rounds + len(rounds),
        verify_rounds=before.verify_rounds + len(verify),
        drafted_tokens=before.drafted_tokens + sum(each.drafted for each in rounds),
        verified_tokens=before.verified_tokens + sum(each.verified for each in rounds),
        accepted_tokens=sources.count(TokenSource.ACCEPTED),
        corrected_tokens=sources.count(TokenSource.CORRECTED),
        bonus_tokens=sources.count(TokenSource.BONUS),
        target_only_tokens=sources.count(TokenSource.TARGET_ONLY),
        per_round_verified=before.per_round_verified + tuple(each.verified for each in verify),
        per_round_accepted=before.per_round_accepted + tuple(each.accepted for each in verify),
    )
