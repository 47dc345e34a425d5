"""Folders of drafters with random weights, for the demo model cut short and for the fake one."""

from __future__ import annotations

from pathlib import Path

import torch
from paceline.drafters.hidden import checkpoint
from paceline.drafters.hidden.config import HiddenConfig
from paceline.drafters.hidden.eagle.config import EagleConfig
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.network import HiddenDrafter
from paceline.drafters.hidden.target_weights import TargetWeights
from paceline.drafters.hidden.vocabulary import DraftVocabulary
from paceline.engine import models, numerics

DEMO = "demo@layers=2"


def demo_drafter(folder: Path, *, layers: tuple[int, ...] = (-1, 1), name: str = DEMO) -> Path:
    """A drafter of the demo model's first two layers: one layer, every sixth token."""
    target = models.resolve(name)
    weights = TargetWeights(target.folder)
    embedding = weights.embedding().float()
    vocab, hidden = embedding.shape
    config = HiddenConfig(
        drafter="dspark",
        hidden_size=hidden,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        vocab_size=vocab,
        draft_vocab_size=vocab // 6,
        block_size=4,
        target_layer_ids=layers,
        mask_token_id=3,
        markov_rank=16,
        enable_confidence_head=True,
        confidence_head_with_markov=True,
        target_model=name,
        target_fingerprint=numerics.fingerprint(target.folder, target.layers),
    )
    torch.manual_seed(5)
    vocabulary = DraftVocabulary(torch.arange(0, 6 * (vocab // 6), 6), vocab)
    checkpoint.save(folder, HiddenDrafter(config, vocabulary, embedding, weights.head().float()))
    return folder


def demo_eagle(folder: Path, *, layers: tuple[int, ...] = (-1, 0, 1), name: str = DEMO) -> Path:
    """The same, of EAGLE-3."""
    target = models.resolve(name)
    weights = TargetWeights(target.folder)
    embedding = weights.embedding().float()
    vocab, hidden = embedding.shape
    config = EagleConfig(
        hidden_size=hidden,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        vocab_size=vocab,
        draft_vocab_size=vocab // 6,
        target_layer_ids=layers,
        fc_norm=True,
        target_model=name,
        target_fingerprint=numerics.fingerprint(target.folder, target.layers),
    )
    torch.manual_seed(5)
    vocabulary = DraftVocabulary(torch.arange(0, 6 * (vocab // 6), 6), vocab)
    checkpoint.save(folder, EagleDrafter(config, vocabulary, embedding))
    return folder
