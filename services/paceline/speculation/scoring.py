"""Log probabilities as reported to callers: of the target's logits as they are, before temperature and options."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.speculation.messages import TokenLogprobs


def score(logits: Tensor, token: int, likeliest: int) -> TokenLogprobs:
    """The log probability of a token, and those of the likeliest ones.

    A function of the row alone. Equal ones are ranked by token id, lowest first.

    Args:
        logits: [V], any float type and device.
        token: whose it is.
        likeliest: how many of the likeliest tokens to report.
    """
    logprobs = torch.log_softmax(logits.to(torch.float32), dim=0)
    mine = logprobs[token]
    rank = 1 + int((logprobs > mine).sum()) + int((logprobs[:token] == mine).sum())
    count = min(likeliest, logprobs.shape[0])
    if not count:
        return TokenLogprobs(float(mine), rank)
    least = torch.topk(logprobs, count, sorted=False).values.amin()
    found = torch.nonzero(logprobs >= least).squeeze(1)
    order = torch.sort(logprobs[found], descending=True, stable=True).indices[:count]
    top = found[order]
    return TokenLogprobs(float(mine), rank, tuple(top.tolist()), tuple(logprobs[top].tolist()))
