"""Whether drafting pays a session, and how many tokens to ask for.

Asking for K draft tokens costs time (the drafts, and the rows that verify them) and gains the accepted ones. The K that
is expected to commit the most tokens per second is asked for; none, where not asking commits more. What is expected
comes from the session's own proposals, over those of all sessions with that drafter, which are the prior.

An estimate can be wrong, so a session also keeps a **purse**, in tokens that plain decoding would have committed: it
starts with START, loses what an asked round cost, gains what it accepted, never holds more than PURSE and is topped up
by UPKEEP a round. Nothing is asked for from an empty purse. Whatever is drafted, n rounds lose at most
START + n · UPKEEP tokens, and the cost of one round, against plain decoding.

A session that does not ask probes after FIRST_PAUSE rounds, twice as many after each probe in vain up to LAST_PAUSE,
once its purse can pay for it: so after at most max(LAST_PAUSE, 2 · MOST_LOST / UPKEEP) rounds.

Nothing of this can change the output: how much is verified depends on the past alone, see DESIGN.md, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paceline.speculation.cost import DraftTimes
from paceline.speculation.survival import Guess, Survival

START, PURSE = 1.25, 8.0
UPKEEP = 0.0125
MOST_LOST = 5.0  # tokens that one round is held to have cost at most, and a probe to cost
FIRST_PAUSE, LAST_PAUSE = 8, 64
MARGIN = 0.02  # tokens a round that asking must gain over not asking
CURIOUS = 3  # proposals accepted as a whole, after which one token more is asked for: nobody else tells what it does
FADING = 0.5  # of a proposal's memory, per round without one
UNKNOWN = Guess(0.6)
UNKNOWN_WEIGHT, OWN_WEIGHT = 4.0, 4.0
LONG_MEMORY, MEMORY = 500.0, 25.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a session's round shares its step with. ``seconds`` is the time of a step by all its rows; 0: not known."""

    seconds: Callable[[float], float]
    rows: float = 0.0  # of others in the same step
    tokens: float = 0.0  # they commit in it
    wait_s: float = 0.0  # their drafts are waited for anyway
    sharing: float = 1.0  # sessions, this one too, that share the time their drafts take
    priced: bool = False  # a token per ``plain_s`` is what time is worth already, whatever this session does

    def step_s(self, rows: float) -> float:
        """Seconds of a step in which the session has so many rows."""
        return self.seconds(self.rows + rows)

    def round_s(self, draft_s: float, rows: float) -> float:
        """Seconds of a round with so many rows of the session's, whose drafts take ``draft_s``."""
        return max(self.wait_s, draft_s / self.sharing) + self.step_s(rows)

    @property
    def plain_s(self) -> float:
        """Seconds of a round in which the session asks for nothing."""
        return self.wait_s + self.step_s(1)


class DrafterRecord:
    """What all sessions with one drafter, of one target, have seen of it."""

    def __init__(self) -> None:
        self.survival = Survival(UNKNOWN, weight=UNKNOWN_WEIGHT, memory=LONG_MEMORY)
        self.times = DraftTimes()


class Payoff:
    """One session with one drafter. ``record`` is that drafter's."""

    def __init__(self, record: DrafterRecord) -> None:
        self.purse = START
        self.stopped = False
        self.rests = False  # nothing will be asked for in the next round: said one ahead, and kept to
        self.record = record
        self._own = Survival(record.survival, weight=OWN_WEIGHT, memory=MEMORY)
        self._pause = FIRST_PAUSE
        self._quiet = 0  # rounds since the last question
        self._whole = 0  # proposals in a row of which all that was asked for was accepted

    def choose(self, most: int, load: Load) -> int:
        """Draft tokens to ask for in the next round, 0 to ``most``. To be called once a round."""
        self.purse = min(PURSE, self.purse + UPKEEP)
        if most <= 0:
            return 0
        k, pays = self._best(most, load)
        if not self.stopped and pays and self.purse > 0:
            return min(most, k + 1) if self._whole >= CURIOUS else k
        if not self.stopped:
            self.stopped, self._quiet = True, 0
        self._quiet += 1
        self._own.fade(FADING)
        probes = self._due(0, k, load) and not self.rests
        self.rests = not probes and not self._due(1, k, load)
        return k if probes else 0

    def _due(self, rounds: int, k: int, load: Load) -> bool:
        """Whether it is time for a probe in so many rounds, and the purse can pay for it."""
        in_time = self._quiet + rounds >= self._pause
        return in_time and self.purse + rounds * UPKEEP >= self._price(k, load)

    def observe(
        self, *, asked: int, drafted: int, verified: int, accepted: int, draft_s: float, missed: bool, load: Load
    ) -> None:
        """What came of a round that waited ``draft_s`` for the answer to a question; ``missed``: it did not come."""
        times = self.record.times
        if not missed:
            times.add(asked, draft_s)
            for survival in (self.record.survival, self._own):
                survival.add(asked=asked, drafted=drafted, verified=verified, accepted=accepted)
        spent_s = draft_s if missed else times.seconds(asked)
        gained = accepted - self._lost(spent_s, verified, load)
        self.purse = min(PURSE, self.purse + gained)
        self._quiet, self._whole = 0, self._whole % CURIOUS + 1 if accepted == asked else 0
        if self.purse >= START and not self.stopped:
            self._pause = FIRST_PAUSE
        if self.stopped and gained <= 0:
            self._pause = min(LAST_PAUSE, 2 * self._pause)
        elif self.stopped:  # one good probe in bad text may be luck: the estimate has a say, another comes soon
            self._pause = FIRST_PAUSE
            self.stopped = self.purse <= 0 or not self._best(asked, load)[1]

    def prices(self, k: int, load: Load) -> tuple[float, float]:
        """Seconds in which a token is committed, asking for ``k`` (0: not known), and that a row adds to a step."""
        plain_s = load.plain_s
        if plain_s <= 0 or k <= 0:
            return 0.0, 0.0
        took_s = load.round_s(self.record.times.seconds(k), 1 + self._own.lengths(k)[k])
        token_s = min(plain_s / (load.tokens + 1), took_s / (load.tokens + 1 + self._own.gains(k)[k]))
        return token_s, (load.step_s(1 + k) - load.step_s(1)) / k

    def value(self, k: int, load: Load) -> float:
        """Tokens that asking for ``k`` is expected to gain over not asking."""
        return self._own.gains(k)[k] - self._price(k, load)

    def chances(self, k: int) -> tuple[float, ...]:
        """Estimated conditional acceptance of each of ``k`` draft tokens."""
        return tuple(self._own.accepted(position) for position in range(k))

    def _best(self, most: int, load: Load) -> tuple[int, bool]:
        """The best K of at least 1, and whether it beats not asking."""
        plain_s = load.plain_s
        if plain_s <= 0:
            return most, True  # nobody knows yet what anything costs
        gains, lengths = self._own.gains(most), self._own.lengths(most)
        took_s = [load.round_s(self.record.times.seconds(k), 1 + lengths[k]) for k in range(most + 1)]
        values = [gains[k] - (took_s[k] - plain_s) * (load.tokens + 1) / plain_s for k in range(most + 1)]
        rates = values if load.priced else [(load.tokens + 1 + gains[k]) / took_s[k] for k in range(most + 1)]
        best = max(range(1, most + 1), key=lambda k: (rates[k], -k))
        return best, values[best] > MARGIN

    def _price(self, k: int, load: Load) -> float:
        """Tokens that asking for ``k`` costs if none is accepted."""
        return self._lost(self.record.times.seconds(k), self._own.lengths(k)[k], load)

    def _lost(self, draft_s: float, verified: float, load: Load) -> float:
        """Tokens that plain decoding would have committed in the time a question cost: 0 to MOST_LOST."""
        plain_s = load.plain_s
        if plain_s <= 0:
            return 0.0
        cost_s = load.round_s(draft_s, 1 + verified) - plain_s
        return min(MOST_LOST, max(0.0, cost_s * (load.tokens + 1) / plain_s))
