"""The drafter's decoder layer: Qwen3's (norms of each query and key head), reading keys and values from elsewhere.

The layer itself attends to nothing: it hands queries, keys and values of its rows to an ``Attend``, so that training,
serving and other kernels run the same arithmetic around different attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.drafters.hidden.config import HiddenConfig, RopeScaling

# (layer, queries [R, heads, d], keys [R, kv heads, d], values [R, kv heads, d]) -> [R, heads, d]; rotated already
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
Rotation = tuple[Tensor, Tensor]  # cosines and sines, [N, 1, d] each


class RMSNorm(nn.Module):
    """``weight * x / rms(x)`` over the last dimension, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)


def rotation(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype, scaling: RopeScaling | None = None
) -> Rotation:
    """Cosines and sines of the rotary embedding (Su et al., arXiv 2104.09864) at these positions, [N] -> [N, 1, d]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    frequencies = theta**-exponents
    if scaling is not None:
        frequencies = _stretched(frequencies, scaling)
    angles = positions.float()[:, None] * frequencies[None, :]
    both = torch.cat((angles, angles), dim=-1)[:, None, :]
    return both.cos().to(dtype), both.sin().to(dtype)


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's frequencies: slow ones slower by a factor, fast ones as they are, those between a mixture."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Apply a rotation to heads [N, heads, d]."""
    cosines, sines = by
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines


class DrafterAttention(nn.Module):
    """Projections and norms around an attention."""

    def __init__(self, config: HiddenConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def queries(self, x: Tensor, by: Rotation) -> Tensor:
        """[N, H] -> [N, heads, d]."""
        return rotate(self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, self.head_dim))), by)

    def keys_values(self, x: Tensor, by: Rotation) -> tuple[Tensor, Tensor]:
        """[N, H] -> keys and values, [N, kv heads, d] each: of block rows, and of projected context features."""
        keys = self.k_norm(self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim)))
        return rotate(keys, by), self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))


class Widths(Protocol):
    """Of a configuration, what a feed-forward layer needs."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def intermediate_size(self) -> int: ...


class DrafterMLP(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, config: Widths) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DrafterLayer(nn.Module):
    """One layer over the rows of blocks, [R, H] -> [R, H]."""

    def __init__(self, config: HiddenConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.self_attn = DrafterAttention(config)
        self.mlp = DrafterMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, rows: Tensor, by: Rotation, attend: Attend) -> Tensor:
        normed = self.input_layernorm(rows)
        queries = self.self_attn.queries(normed, by)
        keys, values = self.self_attn.keys_values(normed, by)
        mixed = attend(self.index, queries, keys, values).flatten(1)
        rows = rows + self.self_attn.o_proj(mixed)
        out: Tensor = rows + self.mlp(self.post_attention_layernorm(rows))
        return out
