"""Hugging Face's own generation, the reference and the rival."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from paceline.engine.models import resolve
from transformers import AutoModelForCausalLM

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Reference:
    """A transformers model with its stock attention, in eager mode."""

    def __init__(self, name: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        model: Any = AutoModelForCausalLM.from_pretrained(resolve(name).folder, dtype=_DTYPES[dtype])
        self._model = model.eval()

    @torch.inference_mode()
    def greedy(self, prompt: Sequence[int], max_tokens: int, **options: Any) -> tuple[list[int], float]:
        """New tokens of greedy ``generate``, and the seconds it took."""
        ids = torch.tensor([list(prompt)])
        started = time.perf_counter()
        out = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, **options
        )
        return out[0, len(prompt) :].tolist(), time.perf_counter() - started

    @torch.inference_mode()
    def batch_seconds(self, prompts: Sequence[Sequence[int]], tokens: int) -> float:
        """Seconds of greedy ``generate`` for a left-padded batch, going on after end tokens."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        started = time.perf_counter()
        out = self._model.generate(ids, attention_mask=mask, **options)
        seconds = time.perf_counter() - started
        assert out.shape == (len(prompts), longest + tokens), out.shape
        return seconds

    @torch.inference_mode()
    def top_two_gap(self, prefix: Sequence[int]) -> float:
        """Difference of the two largest logits after a prefix."""
        logits = self._model(torch.tensor([list(prefix)])).logits[0, -1].float()
        first, second = torch.topk(logits, 2).values.tolist()
        return float(first - second)
