"""Text in and out of tokens, with small tokenizers built here: templates, refusals, incremental detokenisation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.runtime.text import MAX_PENDING_TOKENS, TextCodec, fingerprint
from paceline.speculation.errors import InvalidRequest, Unsupported
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

TEMPLATE = """{{ bos_token }}{% for message in messages %}
<|{{ message['role'] }}|>{{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{%- endif %}"""
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
MESSAGES = [{"role": "user", "content": " Héllo "}, {"role": "assistant", "content": "Hi"}]


def byte_level() -> Tokenizer:
    """Every byte is a token, as in GPT-2 and its successors; a few words are whole."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: number for number, symbol in enumerate([*alphabet, "he", "ll", "hell", "Ġhe"])}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "he")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Words with ▁ for spaces and bytes for whatever has no word, as in Llama 2: the first space is stripped."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "▁h", "▁hi", "hi"]
    vocab = {word: number for number, word in enumerate(words)}
    merges = [("▁", "h"), ("▁h", "i"), ("h", "i")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def files_of(tokenizer: Tokenizer, **files: bytes) -> dict[str, bytes]:
    names = {"template": "chat_template.jinja", "config": "tokenizer_config.json"}
    return {"tokenizer.json": tokenizer.to_str().encode(), **{names[key]: value for key, value in files.items()}}


def chatty(template: str = TEMPLATE) -> TextCodec:
    return TextCodec(files_of(byte_level(), template=template.encode(), config=json.dumps(CONFIG).encode()))


CODECS = {"byte-level": TextCodec(files_of(byte_level())), "byte-fallback": TextCodec(files_of(byte_fallback()))}
codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())


def fed(codec: TextCodec, tokens: Sequence[int]) -> list[str]:
    detokenizer = codec.detokenizer()
    return [detokenizer.feed(token) for token in tokens]


@codecs
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=20))
def test_text_released_in_pieces_is_the_whole_text(codec: TextCodec, text: str) -> None:
    tokens = codec.encode(text, special=False)
    assert "".join(fed(codec, tokens)) == codec.decode(tokens).rstrip("\ufffd")


@codecs
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_tokens_at_all_are_taken_always_the_same(codec: TextCodec, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(0, codec.vocab_size - 1), max_size=80))
    pieces = fed(codec, tokens)
    assert len(pieces) == len(tokens)
    assert fed(codec, tokens) == pieces


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_what_was_released_does_not_change(data: st.DataObject) -> None:
    codec = CODECS["byte-level"]  # with byte fallback, one bad byte turns every byte before it into a replacement too
    tokens = data.draw(st.lists(st.integers(0, codec.vocab_size - 1), max_size=MAX_PENDING_TOKENS - 1))
    assert codec.decode(tokens).startswith("".join(fed(codec, tokens)))


@codecs
def test_a_character_of_many_bytes_comes_when_it_is_whole(codec: TextCodec) -> None:
    pieces = fed(codec, codec.encode("h🚴‍♀️é", special=False))
    assert "".join(pieces) == "h🚴‍♀️é"
    assert pieces.count("") >= 10
    assert not any("\ufffd" in piece for piece in pieces)


@codecs
def test_bytes_that_never_become_text_are_not_held_forever(codec: TextCodec) -> None:
    (*_, half, _) = codec.encode("é", special=False)
    pieces = fed(codec, [half] * (MAX_PENDING_TOKENS + 1))
    assert "".join(pieces[:MAX_PENDING_TOKENS])


@codecs
def test_special_tokens_have_no_text_and_hold_nothing_up(codec: TextCodec) -> None:
    bos = codec.encode("<s>", special=False)[0]
    hi = codec.encode("hi", special=False)
    assert "".join(fed(codec, [bos, *hi, *[bos] * 100, *hi])).replace(" ", "") == "hihi"


def test_the_prompts_tail_keeps_a_leading_space() -> None:
    codec = CODECS["byte-fallback"]
    detokenizer = codec.detokenizer()
    (token,) = codec.encode("hi", special=False)
    assert detokenizer.feed(token) == "hi"
    assert detokenizer.feed(token) == " hi"


def test_the_text_of_a_token_by_itself() -> None:
    """With its leading space, special ones spelled out, and U+FFFD for a part of a character."""
    for codec in CODECS.values():
        (bos,) = codec.encode("<s>", special=False)[-1:]
        assert codec.token_text(bos).strip() == "<s>"
        assert codec.token_text(codec.encode("é", special=False)[-1]) == "\ufffd"
    spaced = CODECS["byte-level"].encode("hell he", special=False)
    assert [CODECS["byte-level"].token_text(token) for token in spaced] == ["hell", " he"]
    assert CODECS["byte-fallback"].token_text(CODECS["byte-fallback"].encode("hi", special=False)[0]) == " hi"


def test_special_tokens_are_added_unless_told_otherwise_and_recognised_either_way() -> None:
    codec = CODECS["byte-fallback"]
    (bos,) = {*codec.encode("hi")} - {*codec.encode("hi", special=False)}
    assert codec.encode("hi")[0] == bos
    assert bos in codec.encode("<s>", special=False)
    assert codec.vocab_size == bos + 2


def test_truncation_and_padding_in_the_file_are_ignored() -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    assert TextCodec(files_of(tokenizer)).encode("abc") == CODECS["byte-level"].encode("abc")


def test_a_chat_is_rendered_as_its_template_says() -> None:
    expected = "<s><|user|>Héllo</s>\n<|assistant|>Hi</s>\n<|assistant|>"
    assert chatty().render_chat(MESSAGES) == expected


def test_templates_have_what_the_hubs_templates_use() -> None:
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ tools is defined }}"
    )
    rendered = chatty(template).render_chat(MESSAGES)
    assert rendered == '{"role": "user", "content": " Héllo "}4False'


def test_without_a_template_a_chat_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="messages"):
        CODECS["byte-level"].render_chat(MESSAGES)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[0].nothing.at_all }}",
        "{{ messages[9]['content'] | tojson }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].__class__.__mro__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_what_a_template_refuses_is_the_callers_error(template: str) -> None:
    with pytest.raises(InvalidRequest, match="messages"):
        chatty(template).render_chat(MESSAGES)


def test_an_empty_chat_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="messages"):
        chatty().render_chat([])


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({}, "tokenizer"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json"),
        ({"tokenizer.json": b"\xff"}, "tokenizer.json"),
        (files_of(byte_level(), config=b"{"), "tokenizer_config.json"),
        (files_of(byte_level(), config=b"[]"), "tokenizer_config.json"),
        (files_of(byte_level(), template=b"{% for %}"), "chat_template.jinja"),
        (files_of(byte_level(), template=b"\xff"), "chat_template.jinja"),
    ],
)
def test_a_broken_file_is_refused_by_name(files: dict[str, bytes], name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        TextCodec(files)
    assert caught.value.field == name


def test_the_fingerprint_is_of_the_tokenizer_alone() -> None:
    plain: dict[str, Any] = files_of(byte_level())
    assert chatty().fingerprint == CODECS["byte-level"].fingerprint == fingerprint(plain)
    assert CODECS["byte-fallback"].fingerprint != fingerprint(plain)
