"""How large a cache will be, before a byte of it is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from paceline.cache.target.layout import CHECKS, INDEX, Shape
from paceline.cache.target.writer import SHARD_BYTES
from paceline.speculation.errors import InvalidRequest

DEEPSPEC_LAYERS = 5  # target layers its configurations keep, beside the last hidden states
DEEPSPEC_TOKENS = 1_237_000_000
"""Tokens of DeepSpec's default data, answers regenerated, sequences cut at 4,096: what its README's "roughly 38 TB" for
Qwen/Qwen3-4B come to at the 30,726 bytes its format takes for a token."""
DEEPSPEC_SOURCE = (
    "DeepSpec's default data, by the “roughly 38 TB” that its README (github.com/deepseek-ai/DeepSpec) tells for "
    "Qwen/Qwen3-4B"
)

_SIZES = {
    "demo": (30, 576),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (30, 576),
    "HuggingFaceTB/SmolLM2-360M-Instruct": (32, 960),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (24, 2048),
    "Qwen/Qwen3-0.6B": (28, 1024),
    "Qwen/Qwen3-1.7B": (28, 2048),
    "Qwen/Qwen3-4B": (36, 2560),
    "Qwen/Qwen3-8B": (36, 4096),
    "Qwen/Qwen3-14B": (40, 5120),
    "Qwen/Qwen3-32B": (64, 5120),
    "meta-llama/Llama-3.2-1B-Instruct": (16, 2048),
    "meta-llama/Llama-3.2-3B-Instruct": (28, 3072),
    "meta-llama/Llama-3.1-8B-Instruct": (32, 4096),
    "meta-llama/Llama-3.1-70B-Instruct": (80, 8192),
    "meta-llama/Llama-3.3-70B-Instruct": (80, 8192),
    "mistralai/Mistral-7B-Instruct-v0.3": (32, 4096),
}  # layers, hidden size; others are read from a folder's config.json or given

KNOWN = tuple(_SIZES)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a cache will take."""

    shape: Shape
    tokens: int
    samples: int = 0  # 0 if it is not known yet: their records are few bytes
    shard_bytes: int = SHARD_BYTES

    @property
    def data_bytes(self) -> int:
        """Of all shards."""
        return self.tokens * self.shape.token_bytes

    @property
    def record_bytes(self) -> int:
        """Of index, checksums and journals."""
        return 2 * self.samples * (INDEX.itemsize + CHECKS.itemsize)

    @property
    def total_bytes(self) -> int:
        return self.data_bytes + self.record_bytes

    @property
    def shards(self) -> int:
        """At least so many, if one writer writes them."""
        return max(1, -(-self.data_bytes // self.shard_bytes))


def model_size(name: str) -> tuple[int, int]:
    """Layers and hidden size of a model that is well known or a folder here; nothing is fetched.

    Raises InvalidRequest for any other, and for a folder whose config.json does not say.
    """
    if name in _SIZES:
        return _SIZES[name]
    path = Path(name).expanduser() / "config.json"
    try:
        fields = json.loads(path.read_bytes())
        text = fields.get("text_config") or fields
        return int(text["num_hidden_layers"]), int(text["hidden_size"])
    except OSError as error:
        expected = f"a folder with config.json, or one of {', '.join(KNOWN)}"
        raise InvalidRequest("model", expected=expected, got=name, hint="or give --hidden-size") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(str(path), expected="num_hidden_layers and hidden_size", got=repr(error)) from error
