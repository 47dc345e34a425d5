"""The least a step can cost on a machine: its matrix products and one read of the KV it attends to, nothing else."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from paceline.engine import native
from paceline.engine.linear import packing_works
from paceline.engine.packing import Packed, pack
from torch import Tensor, nn

_COPIED_BYTES = 128 << 20  # more than any cache holds


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product with weights [n, k]."""

    n: int
    k: int


def products_of(model: Any) -> list[Product]:
    """The products of a model's forward pass in order, those that get the same input as one.

    ``model`` is a plain Hugging Face model. They are found by running it: linear layers called with the same tensor
    one after the other could have been one product.
    """
    found: list[tuple[Tensor, Product]] = []

    def note(linear: nn.Linear, args: tuple[Tensor, ...]) -> None:
        rows, product = args[0], Product(linear.out_features, linear.in_features)
        if found and found[-1][0] is rows:
            found[-1] = (rows, Product(found[-1][1].n + product.n, product.k))
        else:
            found.append((rows, product))

    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if type(module) is nn.Linear]
    try:
        with torch.inference_mode():
            model(torch.tensor([[1]]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [product for _, product in found]


class Floor:
    """The bare work of a step of so many rows, to be timed beside the step."""

    def __init__(self, products: list[Product], *, rows: int, sampled: int, kv_bytes: int, dtype: torch.dtype) -> None:
        """The last product, the head's, has ``sampled`` rows. Weights are made up, and packed for this row count: by
        oneDNN, and by the engine's kernels where they multiply. Whichever is faster here is the floor."""
        self.kv_bytes = kv_bytes
        self._counts = [rows] * (len(products) - 1) + [sampled]
        self._inputs = {(count, p.k): torch.randn(count, p.k).to(dtype) for count, p in self._counted(products)}
        self._products = products
        self._kernels = native.kernels(dtype, torch.device("cpu"))
        self.ways = ["oneDNN"] if packing_works(dtype, rows) else ["torch"]
        if self._kernels is not None and self._kernels.multiplies:
            self.ways.append("native")
        self._weights = {way: [self._pack(way, count, p, dtype) for count, p in self._counted(products)]
                         for way in self.ways}  # fmt: skip
        self._source = torch.ones(_COPIED_BYTES, dtype=torch.uint8)
        self._target = torch.zeros(_COPIED_BYTES, dtype=torch.uint8)

    def _counted(self, products: list[Product]) -> list[tuple[int, Product]]:
        return list(zip(self._counts, products, strict=True))

    def multiply(self, way: str) -> float:
        """Seconds of all products, one after the other."""
        started = time.perf_counter()
        for (count, product), weights in zip(self._counted(self._products), self._weights[way], strict=True):
            rows = self._inputs[count, product.k]
            if way == "native":
                assert self._kernels is not None
                assert isinstance(weights, Packed)
                self._kernels.product(rows, weights.arguments(None), None, rows.new_empty(count, product.n))
            elif way == "oneDNN":
                torch.ops.mkldnn._linear_pointwise(rows, weights, None, "none", [], "")  # noqa: SLF001
            else:
                assert isinstance(weights, Tensor)
                nn.functional.linear(rows, weights)
        return time.perf_counter() - started

    def read(self) -> float:
        """Seconds of reading the KV once, at the rate at which memory is copied now."""
        started = time.perf_counter()
        self._target.copy_(self._source)
        return (time.perf_counter() - started) * self.kv_bytes / _COPIED_BYTES

    @staticmethod
    def _pack(way: str, count: int, product: Product, dtype: torch.dtype) -> Tensor | Packed:
        weight = (0.02 * torch.randn(product.n, product.k)).to(dtype)
        if way == "native":
            return pack(weight)
        if way == "oneDNN":
            return torch.ops.mkldnn._reorder_linear_weight(weight, count)  # type: ignore[no-any-return]  # noqa: SLF001
        return weight
