"""Grammars over a model's tokens: JSON schema, regular expression or Lark, compiled and followed by llguidance.

A grammar speaks of text, a model of tokens. llguidance walks the vocabulary as a trie of bytes through an Earley parser
over derivatives of regular expressions, and answers which tokens may come next. The end tokens of the model may come
exactly where the text so far is a whole answer; where nothing else may come, they are all there is. Where the grammar
leaves one text only, its usual tokenization alone is allowed, as the model would have been trained to write it.

What is allowed is a function of the grammar and the tokens committed: however they were drafted, and whoever took the
session over, masks are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import takewhile

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from paceline.engine.tokenizer_files import TOKENIZER
from paceline.speculation.errors import InvalidRequest, Unsupported
from paceline.speculation.params import Grammar, GrammarKind

_MESSAGE_CHARS = 300


@dataclass(frozen=True, slots=True)
class Limits:
    """What one grammar may cost, counted in work done, not in time: an answer ends at a limit however fast the machine.

    A parser's time for a token grows with the square of the items it keeps, and where rules are ambiguous or nested
    repetitions (``e: e e | "a"``) every byte adds some. All but ``mask_fuel`` depend on grammar and text alone; fuel is
    spent on what the lexer has not derived yet, so a state made anew needs more of it.
    """

    items: int = 500  # of the parser, at one place of the text; ordinary grammars have some dozens
    mask_items: int = 20_000  # more of them, while one mask is computed
    mask_fuel: int = 200_000  # for expressions derived while one mask is computed: 15 ms
    lexer_states: int = 50_000  # one or two KB each, per session; ordinary grammars have some thousands
    compile_fuel: int = 1_000_000  # for expressions built while a grammar is compiled: 20 ms
    symbols: int = 500_000  # of the compiled grammar

    def compiled(self) -> LLParserLimits:
        """As llguidance has them."""
        return LLParserLimits(
            max_items_in_row=self.items,
            step_max_items=self.mask_items,
            step_lexer_fuel=self.mask_fuel,
            max_lexer_states=self.lexer_states,
            initial_lexer_fuel=self.compile_fuel,
            max_grammar_size=self.symbols,
            precompute_large_lexemes=True,
            verbose_errors=False,
        )


LIMITS = Limits()
# Masks, and where an answer ends for want of one, are part of what fixes an answer, so of the numerics class.
VERSION = f"llguidance {version('llguidance')}, {LIMITS}"

_SOURCES: dict[GrammarKind, Callable[[str], str]] = {
    GrammarKind.JSON_SCHEMA: LLMatcher.grammar_from_json_schema,
    GrammarKind.REGEX: LLMatcher.grammar_from_regex,
    GrammarKind.LARK: LLMatcher.grammar_from_lark,
}


class MatcherState:
    """Where one answer stands in its grammar (``speculation.shaping.GrammarState``).

    ``allowed`` walks ahead along drafts and back again, so rows of a step cost a token each. A matcher remembers what
    it has looked at, and some limits count that. An error is therefore believed only of a matcher that has read
    nothing but the committed tokens: drafts don't decide on it. Starting over is dear, and others wait meanwhile, so a
    state that met a limit because it looked ahead looks ahead no more: its rounds commit one token each.

    It belongs to whoever runs the session and is used by one thread at a time. Only ``allowed`` runs torch operations.

    Args:
        fresh: makes a matcher at the beginning of the grammar.
        eos: the model's end tokens.
        known: tokens the tokenizer knows.
        vocab_size: width of a row of logits, V.
    """

    def __init__(self, fresh: Callable[[], LLMatcher], *, eos: Sequence[int], known: int, vocab_size: int) -> None:
        self._fresh, self._eos, self._known, self._vocab_size = fresh, frozenset(eos), known, vocab_size
        self._matcher = fresh()
        self._committed: list[int] = []  # without the end token
        self._ahead: list[int] = []  # what the matcher has read beyond them
        self._ended = False
        self._strained = False  # too complex to look ahead in
        self._matcher.compute_bitmask()  # the dearest of all, and it shows whether there is an answer
        self.broken = self._error()  # why nothing is allowed any more

    def allowed(self, following: Sequence[int]) -> Tensor | None:
        """See GrammarState. Nothing is allowed where the grammar has become too complex to be followed."""
        if self.broken or (following and self._strained):
            return self._nothing()
        mask = self._look(following)
        if not self._matcher.is_error():
            return mask
        if following:
            self._strain()
            return self._nothing()
        self._start_over()
        mask = self._look(())
        self.broken = self._error()
        return self._nothing() if self.broken else mask

    def fitting(self, drafts: Sequence[int]) -> int:
        """How many of these tokens the grammar takes after the committed ones; after an end token it takes none.

        ``allowed`` may still refuse one of them: another tokenization of a text that is forced.
        """
        text = self._text(drafts)
        if self._ended or self.broken or self._strained:
            return 0
        self._rewind(0)
        count: int = self._matcher.validate_tokens(text)
        at_end = count == len(text) < len(drafts) and drafts[count] in self._eos
        ends = at_end and self._read(text) and self._matcher.is_accepting()
        if self._matcher.is_error():
            self._strain()
            return 0
        return count + ends

    def forced(self, following: Sequence[int]) -> tuple[int, ...]:
        """See GrammarState."""
        if self.broken or self._strained:
            return ()
        forced = tuple(self._matcher.compute_ff_tokens()) if self._read(following) else ()
        if self._matcher.is_error():
            self._strain()
            return ()
        return forced

    def commit(self, tokens: Sequence[int]) -> None:
        """See GrammarState. Tokens it does not allow leave it ``broken``."""
        text = self._text(tokens)
        if not self.broken and not self._read(text) and self._matcher.is_error():
            self._start_over()
        if not self.broken and not self._read(text):
            self.broken = self._error() or f"one of {brief(str(text))} is not allowed"
        if not self.broken:
            self._committed += text
            del self._ahead[: len(text)]
        self._ended = self._ended or len(text) < len(tokens)  # whatever it is that is no text

    def _look(self, following: Sequence[int]) -> Tensor | None:
        return self._mask() if self._read(following) else None

    def _read(self, following: Sequence[int]) -> bool:
        """Bring the matcher to after ``following``; False, and it stands somewhere before, if that cannot be read."""
        common = 0
        while common < min(len(self._ahead), len(following)) and self._ahead[common] == following[common]:
            common += 1
        self._rewind(common)
        rest = list(following[common:])
        if rest and (self._ended or len(self._text(rest)) < len(rest)):
            return False
        taken: int = self._matcher.try_consume_tokens(rest)
        self._ahead += rest[:taken]
        return taken == len(rest)

    def _text(self, tokens: Sequence[int]) -> list[int]:
        """Leading tokens that are text: not the end, nor padding of the vocabulary."""
        return list(takewhile(lambda token: token < self._known and token not in self._eos, tokens))

    def _rewind(self, length: int) -> None:
        if len(self._ahead) > length:
            self._matcher.rollback(len(self._ahead) - length)
            del self._ahead[length:]

    def _strain(self) -> None:
        self._strained = True
        self._start_over()

    def _start_over(self) -> None:
        """A matcher never leaves an error."""
        self._matcher, self._ahead = self._fresh(), []
        self._matcher.consume_tokens(self._committed)

    def _mask(self) -> Tensor:
        """bool [V]; of no meaning if the matcher is in error after it."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        known = np.unpackbits(packed, bitorder="little", count=min(8 * len(packed), self._vocab_size))
        bits = np.zeros(self._vocab_size, dtype=np.uint8)
        bits[: len(known)] = known
        return torch.from_numpy(bits).view(torch.bool)

    def _error(self) -> str:
        return brief(self._matcher.get_error()) or "no answer fits it" if self._matcher.is_error() else ""

    def _nothing(self) -> Tensor:
        return torch.zeros(self._vocab_size, dtype=torch.bool)


class Grammars:
    """Compiles grammars for one model's tokenizer. Used by one thread at a time.

    Each session has a matcher of its own: copies of one would share the lexer's states and their limit, so that what
    one answer may be would depend on its neighbours. Compiling takes about a millisecond for ordinary grammars. Reading
    the tokenizer takes a third of a second for 50,000 tokens, and is done when the first grammar comes.

    Args:
        tokenizer: the content of tokenizer.json.
        eos: the model's end tokens.
        vocab_size: width of a row of logits, V.
    """

    def __init__(self, tokenizer: bytes, *, eos: Sequence[int], vocab_size: int, limits: Limits = LIMITS) -> None:
        self._source, self._eos, self._vocab_size = tokenizer, tuple(eos), vocab_size
        self._limits = limits.compiled()
        self._tokenizer: LLTokenizer | None = None

    def state(self, grammar: Grammar, committed: Sequence[int] = ()) -> MatcherState:
        """Where an answer stands after its committed tokens. Slow: a compilation, and the first mask.

        Raises:
            InvalidRequest: the grammar is malformed, uses what the compiler does not know, is too complex or allows no
                answer; or the committed tokens break it.
            Unsupported: this model's tokenizer cannot be used with grammars.
        """
        tokenizer = self._tokenizer = self._tokenizer or self._read_tokenizer(grammar)
        try:
            source = _SOURCES[grammar.kind](grammar.source)
        except ValueError as error:
            raise _refused(grammar, str(error)) from error
        state = MatcherState(
            lambda: LLMatcher(tokenizer, source, log_level=0, limits=self._limits),
            eos=self._eos,
            known=tokenizer.vocab_size,
            vocab_size=self._vocab_size,
        )
        if state.broken:
            raise _refused(grammar, state.broken)
        state.commit(committed)
        if state.broken:
            raise InvalidRequest("tokens", expected="an answer that its grammar allows", got=state.broken)
        return state

    def _read_tokenizer(self, grammar: Grammar) -> LLTokenizer:
        if not self._eos:
            raise Unsupported(_field(grammar), got="a grammar", hint="this model has no token to end an answer with")
        try:
            return LLTokenizer(self._source.decode(), eos_token=list(self._eos))
        except ValueError as error:
            hint = f"this model's tokenizer cannot be used with grammars: {brief(str(error))}"
            raise Unsupported(_field(grammar), got="a grammar", hint=hint) from error


def grammars_of(files: Mapping[str, bytes], *, eos: Sequence[int], vocab_size: int) -> Grammars:
    """The compiler for a model, from its tokenizer's files. See Grammars."""
    return Grammars(files[TOKENIZER], eos=eos, vocab_size=vocab_size)


def _field(grammar: Grammar) -> str:
    return f"grammar.{grammar.kind.value}"


def _refused(grammar: Grammar, why: str) -> InvalidRequest:
    return InvalidRequest(_field(grammar), expected="a grammar that compiles", got=brief(why))


def brief(message: str) -> str:
    """A compiler's message on one line; a caller's megabyte is not sent back."""
    line = " ".join(message.replace("<non-verbose/>", "").split()).replace("NoExtensionBias", "no answer fits it")
    return line if len(line) <= _MESSAGE_CHARS else line[:_MESSAGE_CHARS] + "…"
