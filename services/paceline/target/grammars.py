"""Grammars of sessions that are about to be opened: compiled in a thread of their own, while rounds go on."""

from __future__ import annotations

import threading
from typing import Protocol

from paceline.runtime.compute import ComputeThread
from paceline.speculation.errors import InvalidRequest, Overloaded, Unsupported
from paceline.speculation.messages import SessionOpen
from paceline.speculation.params import Grammar
from paceline.speculation.shaping import GrammarState

COMPILE_LIMIT_S = 5.0  # half of what a router gives an opening
MAX_WAITING = 64
RETRY_BUSY_S = 1.0


class Compiler(Protocol):
    """Makes a grammar's state after committed tokens, as ``engine.grammar.Grammars`` does it. Blocks."""

    def state(self, grammar: Grammar, committed: tuple[int, ...]) -> GrammarState: ...


class GrammarDesk:
    """Where a session's grammar becomes a state. It belongs to one event loop.

    Args:
        compiler: used by this desk's thread only; None refuses every grammar.
        limit_s: a compilation that takes longer is refused; it is left to end by itself.
    """

    def __init__(self, compiler: Compiler | None, *, limit_s: float = COMPILE_LIMIT_S) -> None:
        self._compiler, self._limit_s = compiler, limit_s
        self._thread = ComputeThread("grammar")
        self._waiting = 0

    async def state(self, opening: SessionOpen) -> GrammarState | None:
        """The state of a session's grammar after its committed tokens; None without a grammar.

        Raises:
            InvalidRequest: the grammar does not compile, not in time, or its committed tokens break it.
            Unsupported: this target has no compiler, or its model's tokenizer does not go with grammars.
            Overloaded: others' grammars are being compiled.
        """
        grammar = opening.sampling.grammar
        if grammar is None:
            return None
        field = f"grammar.{grammar.kind.value}"
        if self._compiler is None:
            raise Unsupported(field, got="a grammar", hint="this target has no compiler for grammars")
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} grammars wait for their compilation", retry_after_s=RETRY_BUSY_S)
        compiler, begun = self._compiler, threading.Event()

        def compile_it() -> GrammarState:
            begun.set()
            return compiler.state(grammar, opening.tokens[opening.prompt_len :])

        self._waiting += 1
        try:
            return await self._thread.run(compile_it, limit_s=self._limit_s)
        except TimeoutError:
            if not begun.is_set():
                raise Overloaded("another grammar is being compiled", retry_after_s=RETRY_BUSY_S) from None
            expected = f"a grammar that compiles within {self._limit_s:g} s"
            raise InvalidRequest(field, expected=expected, got="one that takes longer") from None
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Give the thread back; a compilation under way ends by itself."""
        self._thread.close()
