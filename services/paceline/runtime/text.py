"""Tokens ↔ text: the tokenizer, the chat template and incremental detokenisation. No torch, no transformers.

A target ships its tokenizer's files over the wire, so the same bytes make the same codec in every process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from paceline.speculation.errors import InvalidRequest, Unsupported

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
MAX_PENDING_TOKENS = 32  # a character has at most 4 bytes, so text that stays incomplete this long isn't UTF-8
_INCOMPLETE = "\ufffd"

# What the expressions of a template can raise, given messages its author did not think of.
_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


class TextCodec:
    """One model's tokenizer and chat template.

    Args:
        files: file name -> content; ``tokenizer.json`` is required, the chat template and tokenizer config are not.

    Raises:
        InvalidRequest: a file is missing or broken.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        if TOKENIZER_FILE not in files:
            raise InvalidRequest("tokenizer", expected=f"a {TOKENIZER_FILE}", got=sorted(files))
        self._tokenizer = _load(files[TOKENIZER_FILE])
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._anchor = self.encode("a", special=False)[-1:]  # decoders drop the space of what comes first
        config = _config(files.get(CONFIG_FILE, b"{}"))
        self._specials = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token")}
        template = files.get(TEMPLATE_FILE)
        self._template = _compile(template) if template else None
        self.fingerprint = fingerprint(files)

    @property
    def vocab_size(self) -> int:
        """Ids the tokenizer knows, added tokens included; a model's logits may be wider."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of text; ``special`` adds what the tokenizer adds by itself (a BOS, say). Special tokens written
        in the text are recognised either way."""
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special tokens left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def token_text(self, token: int) -> str:
        """Text of a token by itself, special tokens written out and a leading space kept; of a token that is part of a
        character, U+FFFD."""
        before = self._tokenizer.decode(self._anchor, skip_special_tokens=False)
        return str(self._tokenizer.decode([*self._anchor, token], skip_special_tokens=False))[len(before) :]

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt text of a conversation, ready for the assistant's turn.

        Raises:
            Unsupported: the model has no chat template.
            InvalidRequest: the template refuses the messages.
        """
        if self._template is None:
            raise Unsupported("messages", got="a chat", hint="this model has no chat template; send plain text")
        if not messages:
            raise InvalidRequest("messages", expected="at least one message", got=[])
        try:
            return self._template.render(
                messages=[dict(message) for message in messages], add_generation_prompt=True, **self._specials
            )
        except _TEMPLATE_ERRORS as error:
            raise InvalidRequest("messages", expected="what the chat template accepts", got=str(error)) from error

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental detokeniser."""
        return Detokenizer(self._tokenizer)


class Detokenizer:
    """Text of a growing token sequence, released as soon as it can no longer change.

    Feeding the prompt's tail first lets the first word of an answer keep its leading space; its text is dropped by
    the caller.

    A window of tokens is decoded twice, without and with those that are new, and the difference is given out.
    ``tokenizers.DecodeStream`` does nearly that, but raises when byte-fallback tokens turn out not to be UTF-8, which a
    model at a high temperature writes any time, and its window grows without a limit.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # tokens given out last: they decide on the spaces of the next
        self._pending: list[int] = []  # tokens after them whose text may still change

    def feed(self, token: int) -> str:
        """Text that became final with this token; empty while a character is incomplete."""
        self._pending.append(token)
        before, text = self._decode(self._context), self._decode(self._context + self._pending)
        full = len(self._pending) >= MAX_PENDING_TOKENS
        if len(text) <= len(before):
            if full:  # nothing but special tokens: they leave no trace in the text
                self._pending.clear()
            return ""
        if text.endswith(_INCOMPLETE) and not full:
            return ""
        self._context, self._pending = self._pending, []
        return text[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def fingerprint(files: Mapping[str, bytes]) -> str:
    """SHA-256 over the tokenizer itself: drafter and target must agree on it, not on templates."""
    return hashlib.sha256(files[TOKENIZER_FILE]).hexdigest()


def _token_text(value: object) -> str:
    if isinstance(value, dict):
        return str(value.get("content", ""))
    return str(value or "")


def _broken(name: str, expected: str, error: Exception) -> InvalidRequest:
    return InvalidRequest(name, expected=expected, got=str(error), hint="fetch the model's files again")


def _load(content: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more specific
        raise _broken(TOKENIZER_FILE, "a tokenizer", error) from error


def _config(content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except ValueError as error:
        raise _broken(CONFIG_FILE, "JSON", error) from error
    if not isinstance(config, dict):
        raise InvalidRequest(CONFIG_FILE, expected="a JSON object", got=type(config).__name__)
    return config


def _compile(source: bytes) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
    try:
        return environment.from_string(source.decode())
    except (jinja2.TemplateError, UnicodeDecodeError) as error:
        raise _broken(TEMPLATE_FILE, "a Jinja template", error) from error


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
