"""Grammars over a real vocabulary: the demo model's tokenizer."""

from __future__ import annotations

import json
import random
import re

import pytest
from paceline.engine.grammar import Grammars, grammars_of
from paceline.engine.models import resolve
from paceline.engine.tokenizer_files import tokenizer_files
from paceline.runtime.text import TextCodec
from paceline.speculation.params import Grammar, GrammarKind

pytestmark = pytest.mark.model

VOCAB = 49152
END = 2  # <|im_end|>
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["alpha", "alpine", "beta"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 3},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
PATTERN = r"(yes|no|yesterday), I said[, a-zé]{3,40}(\.|!)"


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(tokenizer_files(resolve("demo").folder))


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return grammars_of(tokenizer_files(resolve("demo").folder), eos=[END], vocab_size=VOCAB)


def written(grammars: Grammars, grammar: Grammar, rng: random.Random) -> list[int]:
    """An answer drawn at random; every mask is compared with that of a state that never looked ahead."""
    state, tokens = grammars.state(grammar), list[int]()
    while len(tokens) < 200:
        ahead = grammars.state(grammar, tokens).allowed(())
        mask = state.allowed(())
        assert mask is not None
        assert ahead is not None
        assert mask.equal(ahead), tokens
        allowed = mask.nonzero().flatten().tolist()
        token = END if END in allowed else rng.choice(allowed)
        state.allowed([token, rng.choice(allowed)])  # a draft that is then taken back
        tokens.append(token)
        state.commit([token])
        if token == END:
            return tokens[:-1]
    raise AssertionError("the answer never ended")


def test_answers_have_the_schemas_form(grammars: Grammars, codec: TextCodec) -> None:
    rng = random.Random(2)
    grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
    for _ in range(12):
        value = json.loads(codec.decode(written(grammars, grammar, rng)))
        assert {"name", "age", "kind"} <= set(value) <= set(SCHEMA["properties"])  # type: ignore[call-overload]
        assert value["kind"] in ("alpha", "alpine", "beta")
        assert 0 <= value["age"] <= 150
        assert len(value["name"]) <= 16


def test_answers_match_their_expression(grammars: Grammars, codec: TextCodec) -> None:
    rng = random.Random(3)
    for _ in range(12):
        text = codec.decode(written(grammars, Grammar(GrammarKind.REGEX, PATTERN), rng))
        assert re.fullmatch(PATTERN, text), text


def test_a_text_that_is_forced_comes_in_its_usual_tokens(grammars: Grammars, codec: TextCodec) -> None:
    text = "constitutional rights of people"
    tokens = written(grammars, Grammar(GrammarKind.REGEX, text), random.Random(4))
    assert tokens == codec.encode(text)
