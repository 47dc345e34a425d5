"""What options do to logits, one token at a time: what the shaping of whole rows is tested against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from paceline.speculation.params import SamplingParams


def shaped_slowly(
    logits: Sequence[float], params: SamplingParams, prompt: Sequence[int], output: Sequence[int], *, eos: int
) -> Any:
    """One token after the other, in float32, by the words of the documentation."""
    out = np.array(logits, dtype=np.float32)
    before = [*prompt, *output]
    ends = {*params.stop_token_ids} | (set() if params.ignore_eos else {eos})
    biases = dict(params.logit_bias)
    for token in range(len(out)):
        if token in ends and len(output) < params.min_tokens:
            out[token] = -np.inf
        for word in params.bad_words:
            head = list(word[:-1])
            if word[-1] == token and (not head or before[-len(head) :] == head):
                out[token] = -np.inf
        out[token] += np.float32(biases.get(token, 0))
        if token in before:
            penalty = np.float32(params.repetition_penalty)
            out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
        times = list(output).count(token)
        if times:
            out[token] -= np.float32(params.presence_penalty + params.frequency_penalty * times)
    return out
