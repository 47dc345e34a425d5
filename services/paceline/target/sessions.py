"""The sessions a target holds, and the KV space set aside for them. Never more is promised than the engine has.

While a step is under way its sessions are pinned: the engine is neither asked to free nor to grow what it is writing
to. What a pinned session gives back is freed when the step is over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from paceline.engine.interface import EngineInfo
from paceline.speculation.errors import InvalidRequest, Overloaded, StaleLease, Unavailable, Unsupported
from paceline.speculation.messages import NO_TRACE, SessionOpen
from paceline.speculation.shaping import GrammarState, shaping_of
from paceline.target.answer import Detokenizer, resume
from paceline.target.schedule import MIN_STEP_TOKENS
from paceline.target.session import Session

RETRY_FULL_S = 1.0  # somebody's answer has to end first
RETRY_IN_STEP_S = 0.05  # the step has to end first


class KvSpace(Protocol):
    """The part of an Engine the verifier calls itself."""

    def reserve(self, session_id: str, max_len: int) -> bool: ...

    def free(self, session_id: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a verifier takes on at most. A session has one round at a time, so max_queue bounds sessions too."""

    max_sessions: int = 256
    max_queue: int = 1024
    step_tokens: int = 256
    max_draft_tokens: int = 32
    session_ttl_s: float = 300.0

    def __post_init__(self) -> None:
        if self.step_tokens < MIN_STEP_TOKENS:
            raise InvalidRequest("step_tokens", expected=f"{MIN_STEP_TOKENS} or more", got=self.step_tokens)

    @property
    def sessions(self) -> int:
        """Sessions open at once."""
        return min(self.max_sessions, self.max_queue)


class SessionTable:
    """All sessions of one target.

    Args:
        kv: where KV space is reserved and freed.
        detokenizer: makes a fresh one.
    """

    def __init__(self, kv: KvSpace, info: EngineInfo, limits: Limits, detokenizer: Callable[[], Detokenizer]) -> None:
        self._kv, self._info, self._limits = kv, info, limits
        self._detokenizer = detokenizer
        self._sessions: dict[str, Session] = {}
        self._pinned: frozenset[str] = frozenset()  # ids in the step under way
        self._leaving: dict[str, int] = {}  # released while pinned: session id -> KV positions reserved

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, session_id: str) -> Session | None:
        """A session held, or None."""
        return self._sessions.get(session_id)

    def open(self, opening: SessionOpen, now: float, grammar: GrammarState | None = None) -> Session | None:
        """Take a session on, or over from an older lease, whose KV state is kept as far as the tokens are the same.

        Opening the same lease again with the same content changes nothing.

        Args:
            grammar: where the answer stands in its grammar, after the committed tokens.

        Returns:
            The session of the older lease, which is no longer held.

        Raises:
            InvalidRequest: the session can never run here.
            StaleLease: it is held under a newer lease epoch, or under this one with another content.
            Unavailable: it wants another numerics class.
            Overloaded: no room for it now.
        """
        held = self._sessions.get(opening.session_id)
        if held is not None and opening.lease_epoch <= held.ledger.lease_epoch:
            _require_same(held.ledger.opening, opening)
            held.touched_s = now
            return None
        self._check(opening, grammar)
        if held is None and len(self._sessions) >= self._limits.sessions:
            message = f"the target holds {self._limits.sessions} sessions, as many as it may"
            raise Overloaded(message, retry_after_s=RETRY_FULL_S)
        answer = resume(
            opening,
            context_length=self._info.context_length,
            eos=self._info.eos_token_ids,
            detokenizer=self._detokenizer,
        )
        reserved = self._reserve(opening, held)
        kv_len = held.kv_prefix(opening.tokens) if held else 0
        shaping = shaping_of(
            opening.sampling, opening.tokens, prompt_len=opening.prompt_len, vocab_size=self._info.vocab_size,
            eos=self._info.eos_token_ids, grammar=grammar,
        )  # fmt: skip
        self._sessions[opening.session_id] = Session(
            opening, answer, reserved=reserved, kv_len=kv_len, now=now, shaping=shaping
        )
        return held

    def drop(self, session: Session) -> None:
        """Forget a session and give its KV space back, as soon as that may be done."""
        session_id = session.session_id
        assert self._sessions[session_id] is session, session_id
        del self._sessions[session_id]
        if session_id in self._pinned:
            self._leaving[session_id] = session.reserved
        else:
            self._kv.free(session_id)

    def pin(self, session_ids: Collection[str]) -> None:
        """A step begins."""
        assert not self._pinned, sorted(self._pinned)
        self._pinned = frozenset(session_ids)

    def unpin(self) -> None:
        """The step is over."""
        self._pinned = frozenset()
        for session_id in self._leaving:
            self._kv.free(session_id)
        self._leaving.clear()

    def check_integrity(self) -> None:
        """Assert the invariants, printing all terms."""
        reserved = sum(session.reserved for session in self) + sum(self._leaving.values())
        terms = (
            f"reserved {reserved} of {self._info.kv_tokens}, sessions {len(self)} of {self._limits.sessions}, "
            f"pinned {sorted(self._pinned)}, leaving {sorted(self._leaving)}"
        )
        assert reserved <= self._info.kv_tokens, terms
        assert len(self) <= self._limits.sessions, terms
        assert not self._leaving.keys() & self._sessions.keys(), terms
        assert self._leaving.keys() <= self._pinned, terms
        for session_id, session in self._sessions.items():
            assert session.session_id == session_id, terms
            session.check_integrity()

    def _check(self, opening: SessionOpen, grammar: GrammarState | None) -> None:
        asked = opening.sampling.grammar
        if asked is not None and grammar is None:
            raise Unsupported(f"grammar.{asked.kind.value}", got="a grammar", hint="nothing compiles it here")
        context, vocab = self._info.context_length, self._info.vocab_size
        if opening.numerics_class and opening.numerics_class != self._info.numerics_class:
            wanted, ours = opening.numerics_class, self._info.numerics_class
            raise Unavailable(f"numerics_class: the session wants {wanted}, this target is of {ours}")
        if opening.prompt_len + 1 > context:
            raise InvalidRequest("prompt_len", expected=f"at most {context - 1} prompt tokens", got=opening.prompt_len)
        if max(opening.tokens) >= vocab:
            raise InvalidRequest("tokens", expected=f"token ids below {vocab}", got=max(opening.tokens))

    def _reserve(self, opening: SessionOpen, held: Session | None) -> int:
        """KV positions set aside. Drafts need none of their own: no more are fed than could be committed."""
        session_id = opening.session_id
        need = min(opening.prompt_len + opening.sampling.max_tokens, self._info.context_length)
        have = held.reserved if held else self._leaving.get(session_id, 0)
        if need > have:
            if need > self._info.kv_tokens:
                expected = f"prompt and answer within the {self._info.kv_tokens} tokens the target's KV state holds"
                raise InvalidRequest("max_tokens", expected=expected, got=need)
            if session_id in self._pinned:
                raise Overloaded(f"session {session_id} is in a step and can't grow", retry_after_s=RETRY_IN_STEP_S)
            if not self._kv.reserve(session_id, need):
                raise Overloaded(f"no KV space for {need} tokens", retry_after_s=RETRY_FULL_S)
        self._leaving.pop(session_id, None)
        return max(need, have)


def _require_same(held: SessionOpen, opening: SessionOpen) -> None:
    if replace(held, trace=NO_TRACE) != replace(opening, trace=NO_TRACE):
        raise StaleLease(
            f"session {held.session_id} is held under lease epoch {held.lease_epoch}, opened again under "
            f"{opening.lease_epoch} with another content; take a newer epoch"
        )
