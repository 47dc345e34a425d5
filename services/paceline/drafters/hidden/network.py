"""The network of a hidden-state drafter (DSpark, arXiv 2607.05147; DFlash is the same without its two heads).

The target's hidden states of a few layers become, by one shared projection, one vector per position; its keys and
values are injected into every drafter layer. A block of B rows (the anchor, which is the last committed token, and
B - 1 masks) reads them and itself in one pass. The target's own head, cut to the draft vocabulary, scores the rows; the
Markov head adds what the token before says, the confidence head estimates acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.drafters.hidden.attention import ContextCache, attend_caches
from paceline.drafters.hidden.config import HiddenConfig
from paceline.drafters.hidden.layers import Attend, DrafterLayer, RMSNorm, rotation
from paceline.drafters.hidden.vocabulary import DraftVocabulary


class MarkovHead(nn.Module):
    """First-order bias of low rank r: ``logits_k += W2 W1[x_(k-1)]``.

    W1 has a row for every token of the target (the anchor can be any), W2 one for every token of the draft vocabulary.
    """

    def __init__(self, config: HiddenConfig) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(config.vocab_size, config.markov_rank)
        self.markov_w2 = nn.Linear(config.markov_rank, config.draft_vocab_size, bias=False)
        nn.init.normal_(self.markov_w1.weight, std=0.01)

    def forward(self, previous: Tensor) -> Tensor:
        """Token ids of the target [N] -> bias over the draft vocabulary [N, Vd]."""
        out: Tensor = self.markov_w2(self.markov_w1(previous))
        return out


class ConfidenceHead(nn.Module):
    """Logit of the probability that a row's draft is accepted, given that those before it were."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(size, 1)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.proj(features).squeeze(-1)
        return out


class HiddenDrafter(nn.Module):
    """A drafter's weights, and the target's embedding and head rows it borrows (frozen, never saved).

    Args:
        config: its shape.
        vocabulary: which target tokens it can draft.
        embedding: the target's, [V, H]; kept as given, shared, never trained.
        head: the target's LM head, [V, H]; its rows of the draft vocabulary are copied.
    """

    embed_tokens: Tensor
    lm_head: Tensor
    target_ids: Tensor  # of the draft vocabulary, on the weights' device

    def __init__(self, config: HiddenConfig, vocabulary: DraftVocabulary, embedding: Tensor, head: Tensor) -> None:
        super().__init__()
        assert vocabulary.size == config.draft_vocab_size, (vocabulary.size, config.draft_vocab_size)
        assert embedding.shape == (config.vocab_size, config.hidden_size), embedding.shape
        self.config = config
        self.vocabulary = vocabulary
        self.fc = nn.Linear(len(config.target_layer_ids) * config.hidden_size, config.hidden_size, bias=False)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layers = nn.ModuleList(DrafterLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.markov_head = MarkovHead(config) if config.markov_rank else None
        width = config.hidden_size + (config.markov_rank if config.confidence_head_with_markov else 0)
        self.confidence_head = ConfidenceHead(width) if config.enable_confidence_head else None
        self.register_buffer("embed_tokens", embedding, persistent=False)
        self.register_buffer("lm_head", head[vocabulary.target_ids], persistent=False)
        self.register_buffer("target_ids", vocabulary.target_ids, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.fc.weight.dtype

    def project(self, states: Tensor) -> Tensor:
        """The target's hidden states, layers side by side, [N, L * H] -> one feature vector per position [N, H]."""
        out: Tensor = self.hidden_norm(self.fc(states))
        return out

    def context(self, projected: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of context positions for every layer.

        Each position's depend on itself alone: new ones are appended to a ``ContextCache``, none ever changes.

        Args:
            projected: [N, H], of ``project``.
            positions: [N], absolute.

        Returns [layers, N, kv heads, d] twice.
        """
        by = rotation(positions, self.config.head_dim, self.config.rope_theta, projected.dtype)
        pairs = [layer.self_attn.keys_values(projected, by) for layer in self._layers()]
        return torch.stack([keys for keys, _ in pairs]), torch.stack([values for _, values in pairs])

    def block(self, anchors: Tensor, positions: Tensor, caches: Sequence[ContextCache]) -> Tensor:
        """Draft rows of one block per session.

        Args:
            anchors: [S] token ids, each session's last committed token.
            positions: [S], the anchors' positions: ``len(cache)`` when the context is complete.
            caches: each session's context.

        Returns [S, K, H]: row k scores the token k + 1 after the anchor.
        """
        return self.rows(anchors, positions, attend_caches(caches, self.config.block_size))

    def rows(self, anchors: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """``block`` with an attention of the caller's: [A] anchors and positions -> [A, K, H]."""
        size = self.config.block_size
        ids = torch.full((len(anchors), size), self.config.mask_token_id, dtype=torch.long, device=anchors.device)
        ids[:, 0] = anchors
        places = positions[:, None] + torch.arange(size, device=positions.device)
        by = rotation(places.flatten(), self.config.head_dim, self.config.rope_theta, self.dtype)
        hidden = functional.embedding(ids.flatten(), self.embed_tokens).to(self.dtype)
        for layer in self._layers():
            hidden = layer(hidden, by, attend)
        predicting = hidden.view(len(anchors), size, -1)[:, self.config.first_row :]
        out: Tensor = self.norm(predicting)
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """Base logits over the draft vocabulary, [..., H] -> [..., Vd]."""
        return functional.linear(hidden, self.lm_head.to(hidden.dtype))

    def biased(self, logits: Tensor, previous: Tensor) -> Tensor:
        """Base logits [N, Vd] with what the Markov head says after these tokens [N] (target ids)."""
        return logits if self.markov_head is None else logits + self.markov_head(previous)

    def confidence(self, hidden: Tensor, previous: Tensor) -> Tensor | None:
        """Estimated conditional acceptance, as a logit: rows [N, H] after tokens [N] -> [N]; None without that head."""
        if self.confidence_head is None:
            return None
        if self.config.confidence_head_with_markov:
            assert self.markov_head is not None, self.config
            hidden = torch.cat((hidden, self.markov_head.markov_w1(previous).to(hidden.dtype)), dim=-1)
        out: Tensor = self.confidence_head(hidden)
        return out

    def greedy(self, hidden: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor | None]:
        """The likeliest draft of each block, left to right.

        Args:
            hidden: [S, K, H], of ``block``.
            anchors: [S].

        Returns target token ids [S, K], and acceptance estimates [S, K] (probabilities) if there is a head for them.
        """
        base = self.head(hidden)
        drafts, estimates, previous = [], [], anchors
        for step in range(hidden.shape[1]):
            estimate = self.confidence(hidden[:, step], previous)
            if estimate is not None:
                estimates.append(estimate.float().sigmoid())
            previous = self.target_ids[self.biased(base[:, step], previous).argmax(-1)]
            drafts.append(previous)
        return torch.stack(drafts, 1), torch.stack(estimates, 1) if estimates else None

    def _layers(self) -> list[DrafterLayer]:
        return [layer for layer in self.layers if isinstance(layer, DrafterLayer)]
