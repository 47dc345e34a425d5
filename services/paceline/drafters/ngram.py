"""The ngram drafter: what followed the last time these tokens were written, in the prompt or in the output.

It needs no model, so a draft costs microseconds and any acceptance at all is a gain. The longest suffix that occurred
before decides, because a longer agreement is stronger evidence that the text repeats. Among occurrences of that suffix
the most recent one is taken: text that changes as it is written (an edited list, a renamed variable) agrees with its
latest version, and a repeating pattern is continued from its last period.

A match may overlap the end of the text: reading on past the end continues with the draft's own tokens, so "abab" goes
on as "abab…".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.drafters.interface import Ask, DraftSession
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import Proposal, SparseDistribution

MODEL_ID = "ngram"
WINDOW_TOKENS = 65_536  # of one session; older occurrences are forgotten
TOTAL_TOKENS = 524_288  # indexed for all sessions together: about 150 bytes for each and each n
MATCH_TOKENS = 32  # how far back an agreement is followed: beyond that it says no more
CATCH_UP_TOKENS = 16_384  # indexed in one call: about 20 ms, so that a long prompt doesn't hold up the batch


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a lookup found, and how long the text was that it found again: 0 if none, MATCH_TOKENS at most."""

    proposal: Proposal
    matched: int


class NgramIndex:
    """Where each n-gram of a growing sequence last ended, other than at the sequence's own end.

    Args:
        low, high: the lengths indexed, inclusive.
        window: ends further back than this many tokens are forgotten, which bounds memory.
    """

    def __init__(self, low: int, high: int, window: int) -> None:
        self._lengths = range(low, high + 1)
        self._window = window
        self._ends: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in self._lengths}
        self.length = 0  # tokens seen

    def extend(self, tokens: Sequence[int], length: int) -> None:
        """Take in ``tokens[self.length : length]``; O(new tokens)."""
        for end in range(self.length, length):
            # A gram counts once the token after it is known, so the sequence's own suffix is never found.
            old = end - self._window
            for n in self._lengths:
                if end >= n:
                    self._ends[n][tuple(tokens[end - n : end])] = end
                if old >= n:
                    self._forget(n, tuple(tokens[old - n : old]), old)
        self.length = max(self.length, length)

    def _forget(self, n: int, gram: tuple[int, ...], end: int) -> None:
        if self._ends[n].get(gram) == end:
            del self._ends[n][gram]

    def find(self, tokens: Sequence[int]) -> int | None:
        """Where the latest earlier occurrence of the longest known suffix of ``tokens[: self.length]`` ends."""
        for n in reversed(self._lengths):
            if n < self.length:
                end = self._ends[n].get(tuple(tokens[self.length - n : self.length]))
                if end is not None:
                    return end
        return None

    @property
    def entries(self) -> int:
        """n-grams held."""
        return sum(len(ends) for ends in self._ends.values())


class NgramDrafter:
    """Suffix lookup over prompt and output.

    Args:
        low, high: shortest and longest suffix matched.
        window: tokens of a session that are searched, counted back from its end.
        total: tokens indexed for all sessions together; the index of the session asked about least recently goes
            first, and is built again when it is asked about.
        catch_up: tokens indexed in one ``propose``; a session that needs more answers empty until it has caught up.

    Raises:
        InvalidRequest: low > high.
    """

    name = "ngram"
    model_id = MODEL_ID
    needs_features = False

    def __init__(
        self,
        low: int = 2,
        high: int = 5,
        *,
        window: int = WINDOW_TOKENS,
        total: int = TOTAL_TOKENS,
        catch_up: int = CATCH_UP_TOKENS,
    ) -> None:
        if not 1 <= low <= high:
            raise InvalidRequest("ngram_min", expected=f"1 to ngram_max ({high})", got=low)
        assert window > high, (window, high)
        self._low, self._high, self._window = low, high, window
        self._total, self._catch_up = total, catch_up
        self._sessions: dict[str, DraftSession] = {}
        self._indexes: OrderedDict[str, NgramIndex] = OrderedDict()  # least recently asked about first
        self._indexed = 0  # tokens of all indexes, each counted up to its window

    def open(self, session: DraftSession) -> None:
        self.close(session.session_id)
        self._sessions[session.session_id] = session

    def close(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)
        self._drop_index(session_id)

    def propose(self, asks: Sequence[Ask]) -> list[Proposal]:
        return [found.proposal for found in self.look_up(asks)]

    def look_up(self, asks: Sequence[Ask]) -> list[Lookup]:
        """As ``propose``, and how much each rests on."""
        left = self._catch_up
        found = []
        for ask in asks:
            session = self._sessions[ask.session_id]
            tokens = session.tokens
            index = self._index(ask.session_id)
            before, weight = index.length, self._weight(index)
            index.extend(tokens, min(ask.base_len, before + left))
            left -= index.length - before
            self._indexed += self._weight(index) - weight
            draft, matched = _continue(tokens, index, ask.max_tokens) if index.length == ask.base_len else ((), 0)
            # What a lookup finds is drawn from nothing: it is certain.
            certain = tuple(SparseDistribution((token,), (1.0,)) for token in draft) if session.sampling.rejects else ()
            found.append(Lookup(Proposal(draft, self.name, self.model_id, distributions=certain), matched))
        self._evict()
        return found

    def _index(self, session_id: str) -> NgramIndex:
        index = self._indexes.get(session_id)
        if index is None:
            index = self._indexes[session_id] = NgramIndex(self._low, self._high, self._window)
        self._indexes.move_to_end(session_id)
        return index

    def _weight(self, index: NgramIndex) -> int:
        return min(index.length, self._window)

    def _drop_index(self, session_id: str) -> None:
        index = self._indexes.pop(session_id, None)
        if index is not None:
            self._indexed -= self._weight(index)

    def _evict(self) -> None:
        while self._indexed > self._total and len(self._indexes) > 1:
            self._drop_index(next(iter(self._indexes)))


def _continue(tokens: Sequence[int], index: NgramIndex, count: int) -> tuple[tuple[int, ...], int]:
    end = index.find(tokens)
    if end is None:
        return (), 0
    draft: list[int] = []
    for source in range(end, end + count):
        # Past the text's end the match reads its own draft; end < length, so that token is there already.
        draft.append(tokens[source] if source < index.length else draft[source - index.length])
    return tuple(draft), _agreement(tokens, end, index.length)


def _agreement(tokens: Sequence[int], end: int, length: int) -> int:
    """How many tokens before ``end`` are those before ``length``."""
    most = min(end, MATCH_TOKENS)
    return next((n for n in range(most) if tokens[end - 1 - n] != tokens[length - 1 - n]), most)
