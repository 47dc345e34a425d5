"""Cohorts: which sessions of one verifier are verified together, and when their batch leaves.

With one cohort everybody is drafted, then everybody is verified: a cycle takes d + v(N). With two, one is verified
while the other is drafted, and a cycle takes max(2·v(N/2), 2·d, d + v(N/2)): either worker is one machine that serves
both cohorts in turn, and d is taken to be flat in N. Two win when verify time grows with the tokens and drafting takes
about as long; one wins when drafts are nearly free (n-gram) or verify time is flat.

A batch leaves when all its members are ready. It never waits longer than the draft deadline for anybody; whoever is
late rides in the next one. A session in the first round of a target lease rides alone: its step is a prefill, which
nobody should wait for. It joins the emptier cohort with its second round.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from paceline.speculation.cost import CostCurve, Ema
from paceline.speculation.payoff import Load

GAIN = 0.1  # predicted gain that a change of the number of cohorts must bring …
PATIENCE = 8  # … at so many boundaries in a row
STAGGER = 0.5  # of a verify step: two batches closer together than this would be merged into one step


@dataclass(slots=True)
class _Cohort:
    """Members by where their round stands; a member is in exactly one of the three."""

    drafting: dict[str, float] = field(default_factory=dict)  # session -> its draft deadline
    ready: dict[str, float] = field(default_factory=dict)  # session -> since when
    verifying: set[str] = field(default_factory=set)
    gathering_since: float | None = None  # when the first member of the next batch began its round
    left_at: float = float("-inf")

    @property
    def size(self) -> int:
        return len(self.drafting) + len(self.ready) + len(self.verifying)

    def discard(self, session_id: str) -> None:
        self.drafting.pop(session_id, None)
        self.ready.pop(session_id, None)
        self.verifying.discard(session_id)
        if not self.drafting and not self.ready:
            self.gathering_since = None


class Cohorts:
    """The sessions of one verifier.

    Args:
        draft_deadline_s: the longest a batch waits.
        pinned: 1 or 2 cohorts, or 0 to choose from measured times.
        curve: what a step costs by its rows.
    """

    def __init__(self, *, draft_deadline_s: float, pinned: int = 0, curve: CostCurve | None = None) -> None:
        self.count = pinned or 1
        self.curve = curve or CostCurve()
        self.draft_s = Ema()  # from asking for drafts to their arrival, rounds without drafts included as 0
        self.network_s = Ema()  # round trip to the verifier, less its own time
        self._pinned = bool(pinned)
        self._draft_deadline_s = draft_deadline_s
        self._rows_per_session = Ema()
        self._tokens_per_session = Ema()  # committed in a round
        self._cohorts = (_Cohort(), _Cohort())
        self._alone = _Cohort()
        self._home: dict[str, _Cohort] = {}
        self._votes = 0

    def __len__(self) -> int:
        return len(self._home)

    @property
    def sizes(self) -> tuple[int, int]:
        return self._cohorts[0].size, self._cohorts[1].size

    # Members ----------------------------------------------------------------------------------------------------

    def begin(self, session_id: str, now: float, draft_deadline: float | None, *, alone: bool) -> None:
        """A session began a round: it awaits its draft until ``draft_deadline``, or is ready (None)."""
        previous = self._home.get(session_id)
        if previous is not None:
            previous.discard(session_id)
        home = self._alone if alone else self._choose(previous)
        self._home[session_id] = home
        if home.gathering_since is None:
            home.gathering_since = now
        if draft_deadline is None:
            home.ready[session_id] = now
        else:
            home.drafting[session_id] = draft_deadline

    def ready(self, session_id: str, now: float) -> None:
        """A session's draft came, or is no longer waited for."""
        home = self._home.get(session_id)
        if home is not None and home.drafting.pop(session_id, None) is not None:
            home.ready[session_id] = now

    def remove(self, session_id: str) -> None:
        """A session is over, or has left this verifier."""
        home = self._home.pop(session_id, None)
        if home is not None:
            home.discard(session_id)

    def _choose(self, previous: _Cohort | None) -> _Cohort:
        first, second = self._cohorts
        if self.count == 1:
            return first
        emptier, fuller = (first, second) if first.size <= second.size else (second, first)
        # ``previous`` no longer counts the session itself: with 8 and 8 it stays, with 16 and 0 it moves
        stays = previous is emptier or (previous is fuller and fuller.size == emptier.size)
        return previous if stays and previous is not None else emptier

    # Batches ----------------------------------------------------------------------------------------------------

    def expired(self, now: float) -> list[str]:
        """Sessions whose draft deadline has passed."""
        groups = (*self._cohorts, self._alone)
        return [name for home in groups for name, deadline in home.drafting.items() if now >= deadline]

    def due(self, now: float) -> list[list[str]]:
        """Take the batches that leave now; their members are being verified from here on."""
        batches = []
        for home in (self._alone, *self._cohorts):
            at = self._leaves_at(home)
            if at is None or now < at:
                continue
            batch = list(home.ready)
            home.verifying.update(batch)
            home.ready.clear()
            home.left_at = now
            home.gathering_since = now if home.drafting else None
            batches.append(batch)
            if home is not self._alone:
                self._reconsider()
        return batches

    def next_deadline(self) -> float | None:
        """When to look again, if nothing else happens."""
        times = [deadline for home in (*self._cohorts, self._alone) for deadline in home.drafting.values()]
        times += [at for home in (*self._cohorts, self._alone) if (at := self._leaves_at(home)) is not None]
        return min(times, default=None)

    def _leaves_at(self, home: _Cohort) -> float | None:
        if not home.ready or home.gathering_since is None:
            return None
        if home is self._alone:
            return home.gathering_since
        latest = home.gathering_since + self._draft_deadline_s
        if home.drafting:
            return latest
        at = max(home.ready.values())
        if home.verifying:  # part of the last batch is still out: worth about a step to stay together
            return min(latest, at + self.verify_s(home.size))
        other = self._cohorts[1] if home is self._cohorts[0] else self._cohorts[0]
        if self.count == 2 and other.verifying:
            at = max(at, other.left_at + STAGGER * self.verify_s(other.size))
        return min(latest, at)

    # Measured times ---------------------------------------------------------------------------------------------

    def verify_s(self, sessions: float) -> float:
        """Expected time from a batch of so many sessions leaving to its verdicts, seconds."""
        return self.curve.seconds(sessions * self._rows_per_session.get(1.0)) + self.network_s.get(0.0)

    def load(self, session_id: str) -> Load:
        """What the next round of a session will share its step with, if the others go on as they do."""
        home = self._home.get(session_id)
        members = sum(self.sizes) - (home is not None and home is not self._alone)
        others = members / self.count
        network_s = self.network_s.get(0.0)
        return Load(
            seconds=lambda rows: self.curve.seconds(rows) + network_s,
            rows=others * self._rows_per_session.get(1.0),
            tokens=others * self._tokens_per_session.get(1.0),
            wait_s=self.draft_s.get(0.0) if others else 0.0,
        )

    def observe_commit(self, tokens: int, network_s: float) -> None:
        """A session's round committed so many tokens, and so much of it went to the network."""
        self._tokens_per_session.add(tokens)
        self.network_s.add(network_s)

    def observe_step(self, sessions: int, rows: int, seconds: float) -> None:
        """A verify step took so long."""
        if sessions > 0 and rows > 0:
            self.curve.observe(rows, seconds)
            if rows <= 16 * sessions:  # a prefill says nothing about the rows of a round
                self._rows_per_session.add(rows / sessions)

    def cycles(self) -> tuple[float, float]:
        """Predicted seconds of a cycle, in which every session gets one round, with one cohort and with two."""
        sessions = self._cohorts[0].size + self._cohorts[1].size
        draft, half = self.draft_s.get(0.0), self.verify_s(sessions / 2)
        return draft + self.verify_s(sessions), max(2 * half, 2 * draft, draft + half)

    def _reconsider(self) -> None:
        sessions = self._cohorts[0].size + self._cohorts[1].size
        if self._pinned:
            return
        one, two = self.cycles()
        here, there = (one, two) if self.count == 1 else (two, one)
        better = there < here * (1 - GAIN) if sessions >= 2 else self.count == 2
        self._votes = self._votes + 1 if better else 0
        if self._votes >= PATIENCE:
            self.count, self._votes = 3 - self.count, 0
