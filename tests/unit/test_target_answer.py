"""Text and end of an answer: the same whether built round by round or resumed."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.runtime.text import MAX_PENDING_TOKENS, TOKENIZER_FILE, Detokenizer, TextCodec
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.messages import Finish, FinishReason
from paceline.target.answer import Answer, resume
from tokenizers import Tokenizer, decoders, models

from tests.unit.target_kit import EOS, Words, opening

LENGTH, STOP = FinishReason.LENGTH, FinishReason.STOP


def start(context_length: int = 64, **changes: Any) -> Answer:
    return resume(opening(**changes), context_length=context_length, eos=(EOS,), detokenizer=Words)


def write(answer: Answer, *tokens: int) -> str:
    return "".join(answer.push(token) for token in tokens)


def byte_tokenizer() -> Tokenizer:
    """A tokenizer in the SentencePiece way: words with a leading space, single bytes for the rest."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for word in ("<s>", "▁hello", "▁world", "a"):
        vocab[word] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def ids(tokenizer: Tokenizer, *names: str) -> list[int]:
    vocab = tokenizer.get_vocab()
    return [vocab[name] for name in names]


def test_max_tokens_ends_an_answer() -> None:
    answer = start(max_tokens=2)
    assert (answer.remaining, write(answer, 0, 1)) == (2, "ab")
    assert (answer.finish, answer.remaining) == (Finish(LENGTH), 0)


def test_the_context_ends_an_answer() -> None:
    answer = start(context_length=5, max_tokens=100)
    write(answer, 0, 1)
    assert answer.finish == Finish(LENGTH)


def test_the_end_of_sequence_counts_and_has_no_text() -> None:
    answer = start(ignore_eos=False)
    assert write(answer, 0, EOS) == "a"
    assert (answer.finish, answer.committed) == (Finish(STOP, stop_token_id=EOS), 2)


def test_a_stop_token_ends_even_when_the_end_of_sequence_is_ignored() -> None:
    answer = start(ignore_eos=True, stop_token_ids=(4,))
    assert write(answer, EOS, 4) == "<eos>"
    assert answer.finish == Finish(STOP, stop_token_id=4)


def test_a_stop_string_is_cut_from_the_text_and_not_from_the_tokens() -> None:
    answer = start(stop=("b c",))
    assert write(answer, 0, 2, 3) == "aa"  # "a", "ab", " c"
    assert (answer.finish, answer.committed) == (Finish(STOP, stop_string="b c"), 3)


def test_text_that_may_begin_a_stop_string_waits() -> None:
    answer = start(stop=("bcd",))
    assert [answer.push(token) for token in (0, 9, 4)] == ["a", "", ""]
    assert (answer.finish, answer.committed) == (Finish(STOP, stop_string="bcd"), 3)


@pytest.mark.parametrize(("last", "finish"), [(0, Finish(LENGTH)), (EOS, Finish(STOP, stop_token_id=EOS))])
def test_text_held_back_is_given_out_at_any_other_end(last: int, finish: Finish) -> None:
    answer = start(stop=("bcd", "az"), max_tokens=2, ignore_eos=False)
    assert write(answer, 9, last) == "bc" + ("a" if last == 0 else "")
    assert answer.finish == finish


def test_nothing_is_pushed_after_the_end() -> None:
    answer = start(max_tokens=1)
    answer.push(0)
    with pytest.raises(AssertionError):
        answer.push(0)


def test_committed_tokens_after_the_end_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="tokens: expected nothing after the answer's end"):
        start(committed=(0, 1, 2), max_tokens=2)


@given(st.lists(st.integers(0, EOS), max_size=12), st.integers(0, 12))
def test_a_resumed_answer_goes_on_as_if_nothing_had_happened(tokens: list[int], cut: int) -> None:
    options: dict[str, Any] = {"stop": ("bcd", "ab c"), "max_tokens": 10, "ignore_eos": False}
    whole = start(**options)
    texts = [whole.push(token) for token in tokens if whole.finish is None]
    cut = min(cut, len(texts))
    resumed = start(committed=tokens[:cut], **options)
    rest = [resumed.push(token) for token in tokens[cut : len(texts)]]
    assert rest == texts[cut:]
    assert (resumed.finish, resumed.committed) == (whole.finish, whole.committed)


def test_the_prompts_tail_decides_on_the_first_space() -> None:
    tokenizer = byte_tokenizer()
    hello, world = ids(tokenizer, "▁hello", "▁world")
    codec = TextCodec({TOKENIZER_FILE: tokenizer.to_str().encode()})
    answer = resume(opening(tokens=(hello,)), context_length=64, eos=(), detokenizer=codec.detokenizer)
    assert answer.push(world) == " world"


def test_a_character_of_several_tokens_comes_out_whole() -> None:
    detokenizer = Detokenizer(byte_tokenizer())
    assert [detokenizer.feed(byte) for byte in "é🎉".encode()] == ["", "é", "", "", "", "🎉"]


def test_bytes_that_are_no_text_neither_raise_nor_pile_up() -> None:
    tokenizer = byte_tokenizer()
    for seed in range(30):
        draw, detokenizer = random.Random(seed), Detokenizer(tokenizer)
        out = [detokenizer.feed(draw.randrange(tokenizer.get_vocab_size())) for _ in range(200)]
        silent = "".join("." if not piece else "x" for piece in out)
        assert "." * (MAX_PENDING_TOKENS + 1) not in silent, (seed, silent)


def test_special_tokens_leave_no_trace() -> None:
    tokenizer = byte_tokenizer()
    special, hello, world = ids(tokenizer, "<s>", "▁hello", "▁world")
    detokenizer = Detokenizer(tokenizer)
    texts = [detokenizer.feed(token) for token in (hello, *[special] * (2 * MAX_PENDING_TOKENS), world)]
    assert "".join(texts) == "hello world"
    assert set(texts[1:-1]) == {""}
