"""What a request's options do to a row's logits before temperature: masks, logit bias and penalties.

The order is fixed, the same as vLLM's: what may not come is masked out (grammar, bad words, the ends before
``min_tokens``), then logit bias is added, then the repetition penalty, then presence and frequency penalties.
Temperature, top-k, top-p and min-p come after it, in ``sampling``. All of it is float32 arithmetic on single logits, so
a row's result depends on that row alone, and not on which of its tokens were drafts when it was computed.

- *repetition penalty* (Keskar et al., arXiv 1909.05858, as made safe for negative logits since): of every token of
  prompt or output, a positive logit is divided by it, another multiplied.
- *presence and frequency penalties* look at the output alone: presence + frequency × occurrences comes off the logit of
  every token in it.
- *min_tokens* masks the tokens that would end the answer. A stop string cannot be foreseen by looking at one token, so
  it may still end an answer earlier.
- *bad words* mask the last token of a sequence where the tokens before it, prompt included, are the rest of it.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from paceline.speculation.params import SamplingParams


class GrammarState(Protocol):
    """Where an answer stands in its grammar. ``allowed`` is called in the engine's thread, the rest is bookkeeping."""

    def allowed(self, following: Sequence[int]) -> Tensor | None:
        """Tokens that may come after the committed ones and ``following``: bool [V] on the CPU.

        None if ``following`` itself breaks the grammar. It changes nothing.
        """
        ...

    def fitting(self, drafts: Sequence[int]) -> int:
        """How many of these tokens, as they follow the committed ones, the grammar may take; cheaper than masks."""
        ...

    def forced(self, following: Sequence[int]) -> tuple[int, ...]:
        """What must come after ``following``, as far as one token at a time is allowed; not the end."""
        ...

    def commit(self, tokens: Sequence[int]) -> None:
        """The answer went on with these."""
        ...


@dataclass(slots=True)
class _Occurrences:
    """Tokens the penalties apply to, and how often the output has each; parallel arrays, in order of appearance."""

    tokens: array[int] = field(default_factory=lambda: array("q"))
    counts: array[int] = field(default_factory=lambda: array("q"))
    place: dict[int, int] = field(default_factory=dict)  # token -> its index

    def add(self, token: int, count: int) -> None:
        place = self.place.setdefault(token, len(self.tokens))
        if place == len(self.tokens):
            self.tokens.append(token)
            self.counts.append(count)
        else:
            self.counts[place] += count

    def after(self, following: Iterable[int]) -> tuple[array[int], array[int]]:
        """Tokens and counts once ``following`` is part of the output."""
        tokens, counts = self.tokens[:], self.counts[:]
        for token, count in Counter(following).items():
            place = self.place.get(token)
            if place is None:
                tokens.append(token)
                counts.append(count)
            else:
                counts[place] += count
        return tokens, counts


class Shaping:
    """The options of one session, and what they depend on. It belongs to whoever runs the session.

    Use ``shaping_of`` to make one. Making it and ``commit`` are bookkeeping for any thread; ``apply`` computes, in the
    engine's thread, and must not run while ``commit`` does. Token ids outside the vocabulary are left out: no row has
    them.

    Args:
        params: the request's options.
        tokens: prompt and output so far.
        prompt_len: how many of them are the prompt.
        vocab_size: width of a row, V.
        ends: tokens that end the answer.
        grammar: where the answer stands in its grammar, after ``tokens``.
    """

    def __init__(
        self,
        params: SamplingParams,
        tokens: Sequence[int],
        *,
        prompt_len: int,
        vocab_size: int,
        ends: Iterable[int],
        grammar: GrammarState | None = None,
    ) -> None:
        self.params, self._grammar, self._vocab_size = params, grammar, vocab_size
        self.length = prompt_len  # tokens known
        self._prompt_len = prompt_len
        self._ends = tuple(sorted(token for token in ends if token < vocab_size))
        words = [word for word in params.bad_words if max(word) < vocab_size]
        self._banned = tuple(sorted({word[0] for word in words if len(word) == 1}))
        self._words = tuple(word for word in words if len(word) > 1)
        self._reach = max((len(word) - 1 for word in self._words), default=0)
        self._tail: tuple[int, ...] = tuple(tokens[max(0, prompt_len - self._reach) : prompt_len])
        self._bias = [(token, bias) for token, bias in params.logit_bias if token < vocab_size]
        self._additive = params.presence_penalty != 0 or params.frequency_penalty != 0
        self._penalised = self._additive or params.repetition_penalty != 1
        self._seen = _Occurrences()
        if params.repetition_penalty != 1:
            for token in tokens[:prompt_len]:
                if token < vocab_size:
                    self._seen.add(token, 0)
        self._take(tokens[prompt_len:])

    def commit(self, tokens: Sequence[int]) -> None:
        """The output went on with these."""
        self._take(tokens)
        if self._grammar is not None:
            self._grammar.commit(tokens)

    def fitting(self, drafts: Sequence[int]) -> int:
        """How many of these tokens are worth looking at: what comes after the grammar's first refusal is not."""
        return len(drafts) if self._grammar is None else self._grammar.fitting(drafts)

    def forced(self, following: Sequence[int]) -> tuple[int, ...]:
        """Tokens after ``following`` that need no logits to be known."""
        return () if self._grammar is None else self._grammar.forced(following)

    def row(self, following: Sequence[int] = ()) -> RowShaping:
        """Of the row after the known tokens and ``following``."""
        return RowShaping(self, tuple(following))

    def rows(self, drafts: Sequence[int]) -> tuple[RowShaping, ...]:
        """Of the rows after the known tokens and each prefix of ``drafts``: one more than there are drafts."""
        return tuple(self.row(drafts[:count]) for count in range(len(drafts) + 1))

    def apply(self, logits: Tensor, following: Sequence[int]) -> Tensor:
        """The logits a token is drawn from, after the known tokens and ``following``.

        What follows a token that could not have come itself means nothing, but computes.

        Args:
            logits: [V], any float type and device; left as they are.

        Returns:
            float32 [V], all -inf if the options leave no token.
        """
        out = logits.to(torch.float32, copy=True)
        self._mask(out, following)
        if self._bias:
            index = torch.tensor([token for token, _ in self._bias], device=out.device)
            out[index] += torch.tensor([bias for _, bias in self._bias], dtype=torch.float32, device=out.device)
        if self._penalised:
            self._penalise(out, following)
        return out

    def _take(self, tokens: Sequence[int]) -> None:
        self.length += len(tokens)
        if self._penalised:
            for token in tokens:
                if token < self._vocab_size:
                    self._seen.add(token, 1)
        if self._reach:
            self._tail = (*self._tail, *tokens)[-self._reach :]

    def _mask(self, out: Tensor, following: Sequence[int]) -> None:
        forbidden = list(self._banned)
        if self.length + len(following) - self._prompt_len < self.params.min_tokens:
            forbidden += self._ends
        if self._words:
            forbidden += self._completing((*self._tail, *following))
        if forbidden:
            out[torch.tensor(forbidden, device=out.device)] = -math.inf
        allowed = self._grammar.allowed(following) if self._grammar is not None else None
        if allowed is not None:
            out.masked_fill_(~allowed.to(out.device), -math.inf)

    def _completing(self, before: tuple[int, ...]) -> list[int]:
        """Tokens that would complete a bad word."""
        return [word[-1] for word in self._words if before[-(len(word) - 1) :] == word[:-1]]

    def _penalise(self, out: Tensor, following: Sequence[int]) -> None:
        tokens, counts = self._seen.after(token for token in following if token < self._vocab_size)
        if not tokens:
            return
        index = torch.frombuffer(tokens, dtype=torch.int64).to(out.device)
        picked = out[index]
        penalty = self.params.repetition_penalty
        if penalty != 1:
            picked = torch.where(picked > 0, picked / penalty, picked * penalty)
        if self._additive:
            times = torch.frombuffer(counts, dtype=torch.int64).to(out.device, torch.float64)
            amount = times * self.params.frequency_penalty + times.clamp(max=1) * self.params.presence_penalty
            picked = picked - amount.to(torch.float32)
        out[index] = picked


@dataclass(frozen=True, slots=True)
class RowShaping:
    """A session's shaping, at one row."""

    shaping: Shaping
    following: tuple[int, ...]  # after the tokens the shaping knows

    def apply(self, logits: Tensor) -> Tensor:
        """See Shaping.apply."""
        return self.shaping.apply(logits, self.following)


def shaping_of(
    params: SamplingParams,
    tokens: Sequence[int],
    *,
    prompt_len: int,
    vocab_size: int,
    eos: Iterable[int],
    grammar: GrammarState | None = None,
) -> Shaping | None:
    """A session's shaping, or None if no option asks for any: then it costs nothing.

    Args:
        eos: the model's end-of-sequence tokens. See Shaping for the others.
    """
    if not params.shapes and grammar is None:
        return None
    return Shaping(params, tokens, prompt_len=prompt_len, vocab_size=vocab_size, ends=params.ends(eos), grammar=grammar)
