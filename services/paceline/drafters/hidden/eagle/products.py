"""An EAGLE-3 drafter's products on the engine's own kernels, where there are some; the rest stays torch's."""

from __future__ import annotations

from torch import nn

from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.engine.linear import NativeLinear
from paceline.engine.native import Kernels, kernels


def put_on_kernels(network: EagleDrafter) -> Kernels | None:
    """Replace a network's linear layers; None if the kernels are not for it. What it computes is the same up to
    rounding, and then whatever rows it computes together.

    Few rows are what drafting has, so their weights' way through memory is what they cost: see ``native_backend``.
    """
    found = kernels(network.dtype, network.embed_tokens.weight.device)
    linears = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    even = all(each.in_features % 2 == 0 == each.out_features % 2 for _, _, each in linears)
    if found is None or not found.has_products or not even:
        return None
    for parent, name, child in linears:
        setattr(parent, name, NativeLinear(child.weight, None, kernels=found))
    return found
