"""The sessions a target holds, and the KV space set aside for them.

Never more is promised than the engine has: a session has all it can ever need before it starts.

While a step is under way its sessions are pinned: the engine is neither asked to free nor to change what it is writing
to. What a pinned session gives back is freed when the step is over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from paceline.engine.interface import EngineInfo, KvRequest
from paceline.speculation.errors import InvalidRequest, Overloaded, StaleLease, Unavailable, Unsupported
from paceline.speculation.messages import NO_TRACE, SessionOpen
from paceline.speculation.shaping import GrammarState, shaping_of
from paceline.target.answer import Detokenizer, resume
from paceline.target.schedule import MIN_STEP_TOKENS
from paceline.target.session import Session, reusable_kv, wants_prompt_logprobs

RETRY_FULL_S = 1.0  # somebody's answer has to end first
RETRY_IN_STEP_S = 0.05  # the step has to end first


class KvSpace(Protocol):
    """The part of an Engine the verifier calls itself."""

    def admit(self, request: KvRequest) -> int | None: ...

    def publish(self, session_id: str, tokens: Sequence[int], length: int) -> None: ...

    def free(self, session_id: str, *, keep: bool = True) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a verifier takes on at most. A session has one round at a time, so max_queue bounds sessions too."""

    max_sessions: int = 256
    max_queue: int = 1024
    step_tokens: int = 256
    max_draft_tokens: int = 32
    session_ttl_s: float = 300.0
    share_prefixes: bool = True  # False: every session computes all of its tokens

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
        self._leaving: set[str] = set()  # released while pinned; their KV space is still theirs

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, session_id: str) -> Session | None:
        """A session held, or None."""
        return self._sessions.get(session_id)

    def open(self, opening: SessionOpen, now: float, grammar: GrammarState | None = None) -> Session | None:
        """Take a session on, or over from an older lease, whose KV state is kept as far as the tokens are the same.

        What other sessions of the tenant computed of the same tokens is not computed again.
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
        reserved = min(opening.prompt_len + opening.sampling.max_tokens, self._info.context_length)
        shaping = shaping_of(
            opening.sampling, opening.tokens, prompt_len=opening.prompt_len, vocab_size=self._info.vocab_size,
            eos=self._info.eos_token_ids, grammar=grammar,
        )  # fmt: skip
        kv_len = self._admit(opening, reserved, held)
        self._sessions[opening.session_id] = Session(
            opening, answer, reserved=reserved, kv_len=kv_len, now=now, shaping=shaping
        )
        return held

    def publish(self, session: Session) -> None:
        """Let others share what a session has committed so far."""
        self._kv.publish(session.session_id, session.ledger.tokens, session.kv_len)

    def drop(self, session: Session, *, broken: bool = False) -> None:
        """Forget a session and give its KV space back, as soon as that may be done.

        ``broken``: its KV state may be wrong, so nobody shall share it.
        """
        session_id = session.session_id
        assert self._sessions[session_id] is session, session_id
        del self._sessions[session_id]
        if session_id in self._pinned:
            self._leaving.add(session_id)
        else:
            self._kv.free(session_id, keep=not broken)

    def pin(self, session_ids: Collection[str]) -> None:
        """A step begins."""
        assert not self._pinned, sorted(self._pinned)
        self._pinned = frozenset(session_ids)

    def unpin(self, *, broken: bool = False) -> None:
        """The step is over; ``broken``: it failed."""
        self._pinned = frozenset()
        for session_id in self._leaving:
            self._kv.free(session_id, keep=not broken)
        self._leaving.clear()

    def check_integrity(self) -> None:
        """Assert the invariants, printing all terms."""
        terms = (
            f"sessions {len(self)} of {self._limits.sessions}, "
            f"pinned {sorted(self._pinned)}, leaving {sorted(self._leaving)}"
        )
        assert len(self) <= self._limits.sessions, terms
        assert not self._leaving & self._sessions.keys(), terms
        assert self._leaving <= self._pinned, terms
        for session_id, session in self._sessions.items():
            assert session.session_id == session_id, terms
            assert session.reserved <= self._info.kv_tokens, f"{session_id}: reserved {session.reserved}; {terms}"
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

    def _admit(self, opening: SessionOpen, need: int, held: Session | None) -> int:
        """Set KV space aside; returns the leading positions that need not be computed.

        Drafts need no space of their own: no more are fed than could be committed.
        """
        session_id, tokens = opening.session_id, opening.tokens
        if need > self._info.kv_tokens:
            expected = f"prompt and answer within the {self._info.kv_tokens} tokens the target's KV state holds"
            raise InvalidRequest("max_tokens", expected=expected, got=need)
        pinned = session_id in self._pinned
        request = KvRequest(
            session_id=session_id,
            tokens=tokens,
            max_len=need,
            tenant=opening.tenant,
            kept=min(held.kv_prefix(tokens), reusable_kv(opening)) if held else 0,
            share=self._limits.share_prefixes and not wants_prompt_logprobs(opening),
            in_step=pinned,
        )
        kv_len = self._kv.admit(request)
        if kv_len is None and pinned:
            raise Overloaded(f"session {session_id} is in a step and can't change", retry_after_s=RETRY_IN_STEP_S)
        if kv_len is None:
            raise Overloaded(f"no KV space for {need} tokens", retry_after_s=RETRY_FULL_S)
        self._leaving.discard(session_id)
        return kv_len


def _require_same(held: SessionOpen, opening: SessionOpen) -> None:
    if replace(held, trace=NO_TRACE) != replace(opening, trace=NO_TRACE):
        raise StaleLease(
            f"session {held.session_id} is held under lease epoch {held.lease_epoch}, opened again under "
            f"{opening.lease_epoch} with another content; take a newer epoch"
        )
