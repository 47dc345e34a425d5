"""Structured output as HTTP bodies ask for it: OpenAI's field and vLLM's, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from paceline.engine.fake_tokenizer import IM_END, VOCAB_SIZE, fake_tokenizer_files
from paceline.engine.grammar import grammars_of
from paceline.router.http_requests import parse_chat, parse_completion
from paceline.speculation.errors import InvalidRequest, Unsupported
from paceline.speculation.params import MAX_GRAMMAR_CHARS, Grammar, GrammarKind

COMPLETION = {"prompt": "x"}
CHAT = {"messages": [{"role": "user", "content": "x"}]}
SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "é": {"type": "string"}}, "required": ["z"]}
OBJECT = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')
WRITTEN = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA, ensure_ascii=False))

ASKED: list[tuple[dict[str, Any], Grammar | None]] = [
    ({}, None),
    ({"response_format": None, "structured_outputs": None, "guided_json": None}, None),
    ({"response_format": {"type": "text"}}, None),
    ({"structured_outputs": {}}, None),
    ({"structured_outputs": {"regex": None, "json_object": False, "disable_fallback": False}}, None),
    ({"response_format": {"type": "json_object"}}, OBJECT),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, WRITTEN),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True}}}, OBJECT),
    ({"structured_outputs": {"json": SCHEMA}}, WRITTEN),
    ({"structured_outputs": {"json": '{"type": "object"}'}}, OBJECT),
    ({"structured_outputs": {"json_object": True}}, OBJECT),
    ({"structured_outputs": {"regex": "a+"}}, Grammar(GrammarKind.REGEX, "a+")),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, Grammar(GrammarKind.LARK, 'start: "a"')),
    ({"structured_outputs": {"choice": ["yes", 'n"o']}}, Grammar(GrammarKind.LARK, r'start: "yes" | "n\"o"')),
    ({"guided_json": SCHEMA}, WRITTEN),
    ({"guided_regex": "a+", "response_format": {"type": "text"}}, Grammar(GrammarKind.REGEX, "a+")),
    ({"guided_choice": ["a"]}, Grammar(GrammarKind.LARK, 'start: "a"')),
    ({"guided_grammar": 'start: "b"'}, Grammar(GrammarKind.LARK, 'start: "b"')),
]


@pytest.mark.parametrize(("fields", "expected"), ASKED)
def test_every_way_of_asking(fields: dict[str, Any], expected: Grammar | None) -> None:
    assert parse_chat(CHAT | fields).sampling.grammar == expected
    assert parse_completion(COMPLETION | fields).sampling.grammar == expected


REFUSED: list[tuple[dict[str, Any], type[InvalidRequest], str]] = [
    ({"response_format": "json"}, InvalidRequest, "response_format"),
    ({"response_format": {}}, InvalidRequest, "response_format"),
    ({"response_format": {"type": "json_object", "more": 1}}, InvalidRequest, "response_format"),
    ({"response_format": {"type": "json_schema"}}, InvalidRequest, "response_format"),
    ({"response_format": {"type": "structural_tag", "x": 1}}, Unsupported, "response_format.type"),
    ({"response_format": {"type": "json_schema", "json_schema": 1}}, InvalidRequest, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"shema": {}}}},
        InvalidRequest,
        "response_format.json_schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": [1]}}},
        InvalidRequest,
        "response_format.json_schema.schema",
    ),
    ({"structured_outputs": {"json": 5}}, InvalidRequest, "structured_outputs.json"),
    ({"structured_outputs": {"json_object": "yes"}}, InvalidRequest, "structured_outputs.json_object"),
    ({"structured_outputs": {"choice": "yes"}}, InvalidRequest, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": []}}, InvalidRequest, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a", ""]}}, InvalidRequest, "structured_outputs.choice"),
    ({"structured_outputs": {"regex": ["a"]}}, InvalidRequest, "structured_outputs.regex"),
    ({"structured_outputs": {"whitespace_pattern": " "}}, Unsupported, "structured_outputs.whitespace_pattern"),
    ({"structured_outputs": {"regex": "a", "json": {}}}, InvalidRequest, "structured_outputs.json"),
    ({"guided_regex": "a", "response_format": {"type": "json_object"}}, InvalidRequest, "guided_regex"),
    ({"guided_regex": "\ud800"}, InvalidRequest, "guided_regex"),
    ({"guided_regex": "a" * (MAX_GRAMMAR_CHARS + 1)}, InvalidRequest, "grammar.regex"),
    ({"guided_grammar": ""}, InvalidRequest, "grammar.lark"),
]


@pytest.mark.parametrize(("fields", "error", "field"), REFUSED)
def test_what_cannot_be_meant_is_refused_by_name(
    fields: dict[str, Any], error: type[InvalidRequest], field: str
) -> None:
    for parse, body in ((parse_chat, CHAT), (parse_completion, COMPLETION)):
        with pytest.raises(error) as caught:
            parse(body | fields)
        assert caught.value.field == field
        assert type(caught.value) is error
        assert len(str(caught.value)) < 400


def test_choices_are_exactly_their_texts_whatever_is_in_them() -> None:
    texts = ['a"b', "x\\y", "new\nline", "\t\x01\x7f\x85", "é😀", "{}[]|/", "a", "ab"]
    grammar = parse_chat(CHAT | {"structured_outputs": {"choice": texts}}).sampling.grammar
    assert grammar is not None
    grammars = grammars_of(fake_tokenizer_files(), eos=[IM_END], vocab_size=VOCAB_SIZE)
    for text in texts:
        state = grammars.state(grammar, tuple(text.encode()))
        assert state.fitting((IM_END,)) == 1
    first = grammars.state(grammar).allowed(())
    assert first is not None
    assert set(first.nonzero().flatten().tolist()) == {text.encode()[0] for text in texts}
