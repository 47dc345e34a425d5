"""The network of an EAGLE-3 drafter (Li et al., arXiv 2503.01840, section 3), as ``speculators`` lays it out.

The target's hidden states of a few layers become one vector a position, its *features*. Row i of the drafter sees the
features of position i and the token after it, and predicts the one after that. Its layer's output then stands in for
the features of the next position, which the target has not computed: so it drafts on, as far as one likes.

There is one layer, so the keys and values of a row depend on that row alone: of rows the target's features are there
for, all but the newest need nothing else computed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paceline.drafters.hidden.eagle.config import QWEN3, EagleConfig
from paceline.drafters.hidden.layers import Attend, DrafterMLP, RMSNorm, Rotation, rotate, rotation
from paceline.drafters.hidden.vocabulary import DraftVocabulary


class EagleAttention(nn.Module):
    """Projections around an attention, of inputs twice as wide: a token's embedding beside a hidden state."""

    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_proj = nn.Linear(2 * config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(2 * config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(2 * config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        normed = config.model_type == QWEN3
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if normed else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if normed else nn.Identity()

    def queries(self, x: Tensor, by: Rotation) -> Tensor:
        """[N, 2 H] -> [N, heads, d]."""
        return rotate(self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, self.head_dim))), by)

    def keys_values(self, x: Tensor, by: Rotation) -> tuple[Tensor, Tensor]:
        """[N, 2 H] -> keys and values, [N, kv heads, d] each."""
        keys = self.k_norm(self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim)))
        return rotate(keys, by), self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))


class EagleLayer(nn.Module):
    """The one layer: rows of embeddings and hidden states, [N, H] each -> [N, H]."""

    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        self.norm_before_residual = config.norm_before_residual
        self.self_attn = EagleAttention(config)
        self.mlp = DrafterMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)  # of embeddings
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def keys_values(self, embedded: Tensor, hidden: Tensor, by: Rotation) -> tuple[Tensor, Tensor]:
        """[N, kv heads, d] twice."""
        return self.self_attn.keys_values(self._together(embedded, self.hidden_norm(hidden)), by)

    def forward(self, embedded: Tensor, hidden: Tensor, by: Rotation, attend: Attend) -> Tensor:
        normed = self.hidden_norm(hidden)
        both = self._together(embedded, normed)
        keys, values = self.self_attn.keys_values(both, by)
        mixed = attend(0, self.self_attn.queries(both, by), keys, values).flatten(1)
        rows = (normed if self.norm_before_residual else hidden) + self.self_attn.o_proj(mixed)
        out: Tensor = rows + self.mlp(self.post_attention_layernorm(rows))
        return out

    def _together(self, embedded: Tensor, normed: Tensor) -> Tensor:
        return torch.cat((self.input_layernorm(embedded), normed), dim=-1)


class Table(nn.Module):
    """An embedding: the target's, which is not saved, or one of the drafter's own."""

    weight: Tensor

    def __init__(self, weight: Tensor, *, own: bool) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=own)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N] -> [N, H]."""
        return self.weight[tokens]


class EagleDrafter(nn.Module):
    """A drafter's weights: its head is its own, its embedding the target's unless it brings one.

    Args:
        config: its shape.
        vocabulary: which target tokens it can draft.
        embedding: [V, H]; kept as given.
        own_embedding: whether it is the drafter's own and saved with it.
    """

    target_ids: Tensor  # of the draft vocabulary, on the weights' device

    def __init__(
        self, config: EagleConfig, vocabulary: DraftVocabulary, embedding: Tensor, *, own_embedding: bool = False
    ) -> None:
        super().__init__()
        assert vocabulary.size == config.draft_vocab_size, (vocabulary.size, config.draft_vocab_size)
        assert embedding.shape == (config.vocab_size, config.hidden_size), embedding.shape
        self.config = config
        self.vocabulary = vocabulary
        size, eps, count = config.hidden_size, config.rms_norm_eps, len(config.target_layer_ids)
        self.embed_tokens = Table(embedding, own=own_embedding)
        self.input_norm = RMSNorm(count * size, eps) if config.norm_before_fc else None
        self.fc_norm = nn.ModuleList(RMSNorm(size, eps) for _ in range(count)) if config.fc_norm else None
        self.fc = nn.Linear(count * size, size, bias=False)
        self.layers = nn.ModuleList([EagleLayer(config)])
        self.norm = RMSNorm(size, eps)
        self.lm_head = nn.Linear(size, config.draft_vocab_size, bias=False)
        self.register_buffer("target_ids", vocabulary.target_ids, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    def project(self, states: Tensor) -> Tensor:
        """The target's hidden states, layers side by side, [N, L * H] -> features, one vector a position [N, H]."""
        if self.input_norm is not None:
            states = self.input_norm(states)
        if self.fc_norm is not None:
            parts = states.chunk(len(self.fc_norm), dim=-1)
            states = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        out: Tensor = self.fc(states)
        return out

    def keys_values(self, tokens: Tensor, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of rows.

        Args:
            tokens: [N], of the target, each the one after its row's position.
            hidden: [N, H], features, or what ``rows`` returned of the position before.
            positions: [N], absolute.

        Returns [N, kv heads, d] twice.
        """
        return self._layer.keys_values(self.embed_tokens(tokens), hidden, self._rotation(positions))

    def rows(self, tokens: Tensor, hidden: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Rows as for ``keys_values`` -> [N, H]: what ``head`` scores the next token by, and the ``hidden`` of the
        rows after them."""
        out: Tensor = self._layer(self.embed_tokens(tokens), hidden, self._rotation(positions), attend)
        return self.norm(out) if self.config.norm_output else out

    def head(self, rows: Tensor) -> Tensor:
        """Logits over the draft vocabulary, [..., H] -> [..., Vd]."""
        out: Tensor = self.lm_head(rows if self.config.norm_output else self.norm(rows))
        return out

    @property
    def _layer(self) -> EagleLayer:
        layer = self.layers[0]
        assert isinstance(layer, EagleLayer), layer
        return layer

    def _rotation(self, positions: Tensor) -> Rotation:
        config = self.config
        return rotation(positions, config.head_dim, config.rope_theta, self.dtype, config.rope_scaling)
