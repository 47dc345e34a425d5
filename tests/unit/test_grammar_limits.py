"""Hostile grammars: refused by name, or the end of their own answer, at a limit that counts work and not time."""

from __future__ import annotations

import json
import random

import pytest
from llguidance import LLMatcher, LLTokenizer
from paceline.engine.fake_tokenizer import IM_END, VOCAB_SIZE, fake_tokenizer_files
from paceline.engine.grammar import LIMITS, VERSION, Limits, MatcherState
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.params import Grammar, GrammarKind

from tests.unit.test_engine_grammar import (
    MERGED_END,
    PERSON,
    byte_grammars,
    limited,
    merged_grammars,
    merged_tokenizer,
    regex,
    schema,
    written,
)

AMBIGUOUS = Grammar(GrammarKind.LARK, 'start: e\ne: e e | e e e | "a" | "b"')
NESTED = Grammar(GrammarKind.LARK, 'start: x{0,90}\nx: y{0,90}\ny: z{0,90}\nz: "a"{0,90} "b"')
MANY = schema({"type": "object", "properties": {f"p{i}": {"type": ["string", "null"]} for i in range(400)}})


def walked(state: MatcherState, most: int) -> list[int]:
    """Tokens committed at random, but for ends, until nothing may follow."""
    rng, tokens = random.Random(2), list[int]()
    while len(tokens) < most:
        mask = state.allowed(())
        assert mask is not None
        allowed = [token for token in mask.nonzero().flatten().tolist() if token not in (IM_END, MERGED_END)]
        if not allowed:
            return tokens
        tokens.append(rng.choice(allowed))
        state.commit(tokens[-1:])
    raise AssertionError("no limit was met")


def test_an_expression_too_dear_to_compile_is_refused_by_name() -> None:
    grammar = Grammar(GrammarKind.LARK, "start: A\nA: /(.*a.{30})/ & /(.*b.{30})/ & /(.*c.{30})/")
    with pytest.raises(InvalidRequest, match=f"fuel exhausted.*{LIMITS.compile_fuel}") as caught:
        byte_grammars().state(grammar)
    assert caught.value.field == "grammar.lark"


@pytest.mark.parametrize(
    "expression", ["(" * 60 + "a" + "{0,3})" * 60, "(.{1,1000}.{1,1000}){1,1000}", "(((.{0,30}){0,30}){0,30}){0,30}x"]
)
def test_expressions_too_dear_to_follow_end_their_own_answer(expression: str) -> None:
    """With tokens of several bytes: the lexer looks that far ahead for a mask."""
    other, state = merged_grammars().state(schema(PERSON)), merged_grammars().state(regex(expression))
    tokens = walked(state, most=200)
    assert "too many expressions constructed" in state.broken
    assert state.fitting(tokens[:1]) == 0
    assert json.loads(merged_tokenizer().decode(written(other, random.Random(1))[:-1]))


@pytest.mark.parametrize("grammar", [AMBIGUOUS, NESTED, MANY], ids=["ambiguous", "nested", "many"])
def test_rules_too_dear_end_their_own_answer_and_no_other(grammar: Grammar) -> None:
    grammars = byte_grammars()
    other, state = grammars.state(schema(PERSON)), grammars.state(grammar)
    tokens = walked(state, most=LIMITS.items)
    assert f"max is {LIMITS.items}" in state.broken
    assert state.fitting(b"ab") == 0
    assert state.forced(()) == ()
    again = grammars.state(grammar, tokens[:-1])  # whoever takes the session over ends it there, too
    again.commit(tokens[-1:])
    mask = again.allowed(())
    assert mask is None or not mask.any()
    mask = other.allowed(b'{"name')
    assert mask is not None
    assert mask.any()


def test_a_limit_met_by_looking_ahead_is_met_once_and_ends_nothing() -> None:
    """Starting over costs a compilation and reading all over: it must not be done for every row of every step."""
    tokenizer = LLTokenizer(fake_tokenizer_files()["tokenizer.json"].decode(), eos_token=[IM_END])
    limits, made = Limits(items=60).compiled(), list[LLMatcher]()

    def fresh() -> LLMatcher:
        made.append(LLMatcher(tokenizer, AMBIGUOUS.source, log_level=0, limits=limits))
        return made[-1]

    state = MatcherState(fresh, eos=[IM_END], known=tokenizer.vocab_size, vocab_size=VOCAB_SIZE)
    plain = limited(Limits(items=60)).state(AMBIGUOUS)
    committed = 0
    while True:
        drafts = b"ab" * 8
        for length in range(1, state.fitting(drafts) + 1):
            state.allowed(drafts[:length])
        mask, expected = state.allowed(()), plain.allowed(())
        assert mask is not None
        assert expected is not None
        assert mask.equal(expected)
        if not mask.any():
            break
        state.commit(b"a")
        plain.commit(b"a")
        committed += 1
    assert 3 < committed < 30
    assert state.broken == plain.broken
    assert len(made) <= 4


def test_limits_are_part_of_what_fixes_an_answer() -> None:
    assert str(LIMITS.items) in VERSION
    assert str(LIMITS.mask_fuel) in VERSION
