"""A byte-level tokenizer for the fake engine: one token per byte, two special tokens, a ChatML template."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

IM_START = 256  # token id of <|im_start|>
IM_END = 257  # token id of <|im_end|>, which ends an answer
VOCAB_SIZE = 258

_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def fake_tokenizer_files() -> dict[str, bytes]:
    """Tokenizer files as a model folder has them. Token b < 256 is the byte b."""
    vocabulary = {_symbol(byte): byte for byte in range(256)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "tokenizer_class": "TokenizersBackend"}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "chat_template.jinja": _TEMPLATE.encode(),
        "generation_config.json": json.dumps({"eos_token_id": [IM_END]}).encode(),
    }


def _symbol(byte: int) -> str:
    """The printable character byte-level tokenizers write a byte as (GPT-2's table)."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    if byte in kept:
        return chr(byte)
    return chr(256 + sum(1 for other in range(byte) if other not in kept))
