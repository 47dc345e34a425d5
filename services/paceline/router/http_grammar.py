"""Structured output in HTTP bodies -> a grammar: OpenAI's ``response_format``, vLLM's ``structured_outputs``.

vLLM's older fields ``guided_json``, ``guided_regex``, ``guided_choice`` and ``guided_grammar`` mean the same as the
keys of ``structured_outputs``. Grammars are Lark's. Whether a schema, expression or grammar is well formed is for the
target to say, which compiles it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from paceline.router.http_fields import brief, text_of
from paceline.speculation.errors import InvalidRequest, Unsupported
from paceline.speculation.params import Grammar, GrammarKind

MAX_CHOICE_STRINGS = 1024
_FORMATS = ("text", "json_object", "json_schema")
_ANY_OBJECT = {"type": "object"}
_SCHEMA_FIELDS = {"name", "description", "schema", "strict"}  # every schema is held to strictly


def grammar_of(
    response_format: Mapping[str, object] | None,
    structured_outputs: Mapping[str, object] | None,
    guided: Mapping[str, object],
) -> Grammar | None:
    """The grammar a body asks for; None if it asks for none.

    Args:
        guided: values of the older fields, by their names.

    Raises:
        InvalidRequest: more than one is asked for, or a value is of a wrong form. Unsupported: a kind not offered.
    """
    asked = [("response_format", _format(response_format))]
    for key, value in (structured_outputs or {}).items():
        asked.append((f"structured_outputs.{key}", _guided(key, value, f"structured_outputs.{key}")))
    asked += [(name, _guided(name.removeprefix("guided_"), value, name)) for name, value in guided.items()]
    found = [(field, grammar) for field, grammar in asked if grammar is not None]
    if len(found) > 1:
        names = ", ".join(field for field, _ in found)
        raise InvalidRequest(found[1][0], expected="one kind of structured output", got=names)
    return found[0][1] if found else None


def _format(value: Mapping[str, object] | None) -> Grammar | None:
    if value is None or value == {"type": "text"}:
        return None
    if value == {"type": "json_object"}:
        return _object(True, "response_format")
    kind = value.get("type")
    if isinstance(kind, str) and kind not in _FORMATS:
        raise Unsupported("response_format.type", got=brief(kind), hint="use json_schema, json_object or text")
    if kind != "json_schema" or set(value) != {"type", "json_schema"}:
        expected = '{"type": "json_schema", "json_schema": …}, {"type": "json_object"} or {"type": "text"}'
        raise InvalidRequest("response_format", expected=expected, got=brief(sorted(value)))
    described, path = value["json_schema"], "response_format.json_schema"
    if not isinstance(described, Mapping) or not described.keys() <= _SCHEMA_FIELDS:
        raise InvalidRequest(path, expected='{"name": …, "schema": …}', got=brief(described))
    return _schema(described.get("schema", _ANY_OBJECT), f"{path}.schema")


def _guided(key: str, value: object, field: str) -> Grammar | None:
    if value is None or value is False:  # an option of vLLM's that is off
        return None
    make = _MAKERS.get(key)
    if make is None:
        raise Unsupported(field, got=brief(value), hint="use json, json_object, regex, choice or grammar")
    return make(value, field)


def _schema(value: object, field: str) -> Grammar:
    """A schema as an object, or as text that holds one."""
    if isinstance(value, str):
        return Grammar(GrammarKind.JSON_SCHEMA, text_of(value, field))
    if not isinstance(value, Mapping | bool):
        raise InvalidRequest(field, expected="a JSON schema", got=brief(value))
    # The order of properties is part of a schema: answers have them in that order.
    return Grammar(GrammarKind.JSON_SCHEMA, text_of(json.dumps(value, ensure_ascii=False), field))


def _choice(value: object, field: str) -> Grammar:
    """One of some texts, as a Lark rule; Lark's strings are written as JSON's are."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not 0 < len(value) <= MAX_CHOICE_STRINGS:
        raise InvalidRequest(field, expected=f"a list of 1 to {MAX_CHOICE_STRINGS} strings", got=brief(value))
    texts = [text_of(text, field) for text in value]
    if not all(texts):
        raise InvalidRequest(field, expected="strings with something in them", got="")
    literals = [json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f") for text in texts]
    return Grammar(GrammarKind.LARK, "start: " + " | ".join(literals))


def _object(value: object, field: str) -> Grammar:
    if value is not True:
        raise InvalidRequest(field, expected="true or false", got=brief(value))
    return _schema(_ANY_OBJECT, field)


def _regex(value: object, field: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, text_of(value, field))


def _lark(value: object, field: str) -> Grammar:
    return Grammar(GrammarKind.LARK, text_of(value, field))


_MAKERS: dict[str, Callable[[object, str], Grammar]] = {
    "json": _schema,
    "json_object": _object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _lark,
}
