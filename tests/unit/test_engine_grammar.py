"""Grammar states: exact masks, whatever was looked at before; ends; limits; compilation errors by name."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.engine.fake_tokenizer import IM_END, VOCAB_SIZE, fake_tokenizer_files
from paceline.engine.grammar import Grammars, Limits, MatcherState, grammars_of
from paceline.speculation.errors import InvalidRequest, Unsupported
from paceline.speculation.params import Grammar, GrammarKind
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["rider", "runner"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
MERGED_END = 0


@cache
def byte_grammars() -> Grammars:
    return grammars_of(fake_tokenizer_files(), eos=[IM_END], vocab_size=VOCAB_SIZE)


@cache
def merged_tokenizer() -> Tokenizer:
    """A small BPE tokenizer whose tokens are longer than a byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    words = ['{"name": "Ada", "age": 36, "kind": "rider"}', "the rider and the runner ride on and on, over the river"]
    tokenizer.train_from_iterator(words * 10, trainer)
    return tokenizer


@cache
def merged_grammars() -> Grammars:
    """Its rows of logits are wider than the tokenizer, as those of padded models are."""
    tokenizer = merged_tokenizer()
    return Grammars(tokenizer.to_str().encode(), eos=[MERGED_END], vocab_size=tokenizer.get_vocab_size() + 7)


def limited(limits: Limits) -> Grammars:
    return Grammars(fake_tokenizer_files()["tokenizer.json"], eos=[IM_END], vocab_size=VOCAB_SIZE, limits=limits)


def regex(source: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, source)


def schema(value: object) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(value))


def tokens_allowed(state: MatcherState, following: Sequence[int] = ()) -> list[int] | None:
    mask = state.allowed(following)
    return None if mask is None else mask.nonzero().flatten().tolist()


def written(state: MatcherState, rng: random.Random, *, end: int = MERGED_END, most: int = 400) -> list[int]:
    """An answer drawn at random from what the grammar allows, its end included; the end comes as soon as it may."""
    tokens: list[int] = []
    while len(tokens) < most:
        allowed = tokens_allowed(state)
        assert allowed, tokens
        token = end if end in allowed else rng.choice(allowed)
        tokens.append(token)
        state.commit([token])
        if token == end:
            return tokens
    raise AssertionError("the answer never ended")


@settings(max_examples=60, deadline=None)
@given(st.sets(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=6))
def test_what_may_come_is_exactly_what_leads_to_an_answer(answers: set[str]) -> None:
    grammar = regex("|".join(sorted(answers)))
    prefixes = {answer[:length] for answer in answers for length in range(len(answer) + 1)}
    for prefix in sorted(prefixes):
        state = byte_grammars().state(grammar, tuple(prefix.encode()))
        longer = {
            ord(other[len(prefix)]) for other in prefixes if len(other) > len(prefix) and other.startswith(prefix)
        }
        assert set(tokens_allowed(state) or ()) == longer | ({IM_END} if prefix in answers else set()), prefix


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_masks_do_not_depend_on_what_was_looked_at_before(seed: int) -> None:
    rng = random.Random(seed)
    grammars, grammar = (
        merged_grammars(),
        rng.choice([schema(PERSON), regex(r"(the|a) r(ider|unner|iver)s? on{1,5}\.")]),
    )
    answer = written(grammars.state(grammar), rng)[:-1]
    walked = grammars.state(grammar)
    start = 0
    while start < len(answer):
        for _ in range(3):  # ahead along the answer, along other ways, back and ahead again
            length = rng.randrange(len(answer) - start + 1)
            following = [*answer[start : start + length], *rng.choices(range(600), k=rng.randrange(2))]
            expected = tokens_allowed(grammars.state(grammar, answer[:start]), following)
            assert tokens_allowed(walked, following) == expected
            assert walked.fitting(following) in (length, len(following))
        step = rng.randrange(1, 4)
        walked.commit(answer[start : start + step])
        start += step
    assert tokens_allowed(walked) == tokens_allowed(grammars.state(grammar, answer))


@pytest.mark.parametrize("pattern", [r"[a-z]{2,9}@[a-z]{2,9}\.(com|org)", r"([0-9]{1,3}\.){3}[0-9]{1,3}", "é+|ü"])
@pytest.mark.parametrize("merged", [False, True])
def test_every_answer_matches_its_expression(pattern: str, merged: bool) -> None:
    rng = random.Random(pattern)
    grammars, end = (merged_grammars(), MERGED_END) if merged else (byte_grammars(), IM_END)
    for _ in range(10):
        tokens = written(grammars.state(regex(pattern)), rng, end=end)[:-1]
        text = merged_tokenizer().decode(tokens) if merged else bytes(tokens).decode()
        assert re.fullmatch(pattern, text), text


def test_every_answer_has_the_schemas_form() -> None:
    rng = random.Random(5)
    for _ in range(20):
        text = merged_tokenizer().decode(written(merged_grammars().state(schema(PERSON)), rng)[:-1])
        value = json.loads(text)
        assert set(value) == {"name", "age", "kind"}
        assert len(value["name"]) <= 12
        assert 0 <= value["age"] <= 150
        assert value["kind"] in ("rider", "runner")


def test_the_end_comes_where_the_answer_is_whole_and_nothing_after_it() -> None:
    state = byte_grammars().state(regex("ab?"))
    assert tokens_allowed(state) == [ord("a")]
    assert tokens_allowed(state, b"a") == [ord("b"), IM_END]
    assert tokens_allowed(state, b"ab") == [IM_END]
    assert tokens_allowed(state, (*b"ab", IM_END)) is None
    assert [state.fitting(drafts) for drafts in (b"", b"ab", b"abb", b"ba", (97, IM_END), (97, IM_END, 97))] == [
        *(0, 2, 2, 0),
        *(2, 2),
    ]
    assert state.fitting((IM_END,)) == 0, "too early"
    state.commit((97, IM_END))
    assert tokens_allowed(state, b"b") is None
    assert state.fitting(b"b") == 0


def test_padding_beyond_the_tokenizer_is_never_allowed() -> None:
    mask = merged_grammars().state(regex(r"(.|\n)*")).allowed(())
    width = merged_tokenizer().get_vocab_size()
    assert mask is not None
    assert mask.shape == (width + 7,)
    assert mask[: width - 1].any()
    assert not mask[width:].any()


def test_a_narrower_model_than_its_tokenizer() -> None:
    grammars = grammars_of(fake_tokenizer_files(), eos=[IM_END], vocab_size=100)
    mask = grammars.state(regex("[a-z]")).allowed(())
    assert mask is not None
    assert mask.nonzero().flatten().tolist() == [97, 98, 99]


def test_a_grammar_too_complex_to_follow_allows_nothing_and_drafts_do_not_bring_it_there() -> None:
    grammars = limited(Limits(lexer_states=400))
    grammar = regex("x|y(a|b)*a(a|b){12}z")  # the second way needs thousands of states
    state = grammars.state(grammar)
    rng = random.Random(3)
    ahead = [ord("y")]
    while (allowed := tokens_allowed(state, ahead)) and len(ahead) < 400:
        ahead.append(rng.choice([token for token in allowed if token != ord("z")]))
    assert allowed == [], "the limit was never met"
    assert tokens_allowed(state) == [ord("x"), ord("y")], "looking ahead changed where it stands"
    assert tokens_allowed(state, b"y") == [], "it looks ahead no more"
    state.commit(ahead)
    for _ in range(1000):
        allowed = tokens_allowed(state)
        if not allowed:
            break
        state.commit([rng.choice([token for token in allowed if token != ord("z")])])
    assert "too many states" in state.broken
    state.commit(b"a")
    assert tokens_allowed(state, b"a") == []


@pytest.mark.parametrize(
    ("kind", "source", "told"),
    [
        (GrammarKind.REGEX, "(", "unclosed group"),
        (GrammarKind.REGEX, "(?=a)b", "look-around"),
        (GrammarKind.JSON_SCHEMA, "{", "EOF while parsing|expected"),
        (GrammarKind.JSON_SCHEMA, '{"type": "nope"}', "Invalid type: nope"),
        (GrammarKind.JSON_SCHEMA, '{"not": {"type": "string"}}', "Unimplemented keys"),
        (GrammarKind.JSON_SCHEMA, '{"$ref": "http://example.com/schema"}', "does not fetch resources"),
        (GrammarKind.JSON_SCHEMA, '{"items":' * 500 + "{}" + "}" * 500, "recursion limit"),
        (GrammarKind.LARK, "start: nobody", 'unknown name: "nobody"'),
        (GrammarKind.LARK, "start: A\nA: /a/ & /b/", "no answer fits it"),
        (GrammarKind.LARK, "start: " + "(" * 20_000, "too deeply nested"),
    ],
)
def test_what_does_not_compile_is_refused_by_name(kind: GrammarKind, source: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told) as caught:
        byte_grammars().state(Grammar(kind, source))
    assert caught.value.field == f"grammar.{kind.value}"
    assert len(str(caught.value)) < 500


def test_committed_tokens_must_be_an_answers_beginning() -> None:
    with pytest.raises(InvalidRequest, match="tokens: expected an answer that its grammar allows"):
        byte_grammars().state(regex("ab"), tuple(b"ax"))


def test_models_that_cannot_have_grammars() -> None:
    with pytest.raises(Unsupported, match="no token to end an answer with"):
        grammars_of(fake_tokenizer_files(), eos=[], vocab_size=VOCAB_SIZE).state(regex("a"))
    words = Tokenizer(models.WordLevel({"a": 0, "<end>": 1}, unk_token="a")).to_str().encode()
    with pytest.raises(Unsupported, match="tokenizer cannot be used with grammars"):
        Grammars(words, eos=[1], vocab_size=2).state(regex("a"))
