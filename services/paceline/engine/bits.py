"""Hidden states as they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def bf16_bits(states: Tensor) -> NDArray[np.uint16]:
    """The bits of states as bf16, of their shape; others are rounded. Looks into them where that is what they are."""
    found: NDArray[Any] = states.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
    return found.view(np.uint16)
