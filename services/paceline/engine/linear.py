"""Matrix products in tiles of one row count, so that a row's bits never depend on how many rows there are.

Between products of different row counts a row's bits may differ; between products of one row count they do not,
wherever the row stands and whatever its neighbours (checked at load for the kernels at hand). On a CPU the weights are
packed once for that row count, which is also what makes the product fast. The engine's own products (``native``) need
no tiles: they compute a row the same way however many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.engine.native import Kernels, LinearArguments
from paceline.engine.packing import pack
from paceline.engine.quantised import Quantised
from paceline.speculation.errors import Unsupported

_CACHE_LINE_BYTES = 64
_FREE_HINT = 16  # the row count that weights are packed for where any may come


def packing_available() -> bool:
    """Whether torch was built with the oneDNN operators that multiply by packed weights. They are not public API."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def packing_works(dtype: torch.dtype, row_tile: int) -> bool:
    """Whether packed products of a dtype run here, are right, and do not depend on where a row stands."""
    if not packing_available():
        return False
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(48, 64, generator=generator).to(dtype)
    rows = torch.randn(row_tile, 64, generator=generator).to(dtype)
    try:
        packed = _pack(weight, row_tile)
        out = _multiply_packed(rows, packed, None)
        turned = _multiply_packed(rows.flip(0), packed, None)
    except RuntimeError:  # the processor lacks the instructions, or the operator's signature changed
        return False
    close = torch.allclose(out.float(), functional.linear(rows.float(), weight.float()), rtol=0.02, atol=0.3)
    return close and torch.equal(turned.flip(0), out)


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor itself if it starts on a cache line, else a copy that does.

    Maths libraries peel unaligned beginnings, which changes the order of a reduction: a row's bits would depend on
    where in the batch, or in a memory-mapped file, it lies (seen with one-row products in float32).
    """
    return tensor if tensor.data_ptr() % _CACHE_LINE_BYTES == 0 else tensor.clone()


def _pack(weight: Tensor, row_tile: int) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), row_tile)  # noqa: SLF001
    return packed


def _multiply_packed(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")  # noqa: SLF001
    return out


class Linear(Protocol):
    """A linear layer whose rows do not mind each other."""

    in_features: int

    def __call__(self, rows: Tensor) -> Tensor:
        """rows: [..., in] → [..., out]."""
        ...

    def added(self, rows: Tensor, residual: Tensor) -> Tensor:
        """residual + layer(rows), rounded twice as torch would. rows: [N, in]; residual: [N, out]."""
        ...


MakeLinear = Callable[[Tensor, Tensor | None], nn.Module]  # of a weight [out, in] and a bias [out]


class NativeLinear(nn.Module):
    """A linear layer over the engine's own products, of any number of rows."""

    def __init__(self, weight: Tensor | Quantised, bias: Tensor | None, *, kernels: Kernels) -> None:
        """weight: [out, in], see ``pack``; bias: [out]. Keeps no reference to ``weight``."""
        super().__init__()
        packed = pack(weight)
        self.out_features, self.in_features = packed.outputs, packed.inputs
        self._kernels = kernels
        self._packed = packed  # what the arguments point to
        self._bias = None if bias is None else bias.detach().contiguous()
        self._arguments = packed.arguments(self._bias)

    def forward(self, rows: Tensor) -> Tensor:
        """rows: [..., in] → [..., out]."""
        flat = rows.reshape(-1, self.in_features).contiguous()
        return self._multiply(flat, None).view(*rows.shape[:-1], self.out_features)

    def added(self, rows: Tensor, residual: Tensor) -> Tensor:
        """See Linear."""
        return self._multiply(rows, residual)

    def arguments(self) -> LinearArguments:
        """What the kernels need to run it themselves."""
        return self._arguments

    def _multiply(self, rows: Tensor, residual: Tensor | None) -> Tensor:
        out = rows.new_empty(rows.shape[0], self.out_features)
        self._kernels.product(rows, self._arguments, residual, out)
        return out


class TiledLinear(nn.Module):
    """A linear layer that always multiplies exactly ``row_tile`` rows at a time."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, row_tile: int, packed: bool) -> None:
        """weight: [out, in]; bias: [out]. A packed layer keeps no reference to ``weight``."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.row_tile = row_tile
        self.packed = packed
        # Plain attributes: oneDNN's opaque tensors cannot be buffers, and inference needs no parameters.
        self._weight = _pack(weight.detach(), row_tile) if packed else _aligned(weight.detach().contiguous())
        self._bias = None if bias is None else bias.detach()

    def forward(self, rows: Tensor) -> Tensor:
        """rows: [..., in] holding a multiple of row_tile rows → [..., out]."""
        flat = rows.reshape(-1, self.in_features).contiguous()
        assert flat.shape[0] % self.row_tile == 0, f"{flat.shape[0]} rows are no multiple of {self.row_tile}"
        if flat.shape[0] == self.row_tile:
            out = self._multiply(flat)
        else:
            out = torch.cat([self._multiply(tile) for tile in torch.split(flat, self.row_tile)])
        return out.view(*rows.shape[:-1], self.out_features)

    def added(self, rows: Tensor, residual: Tensor) -> Tensor:
        """See Linear."""
        out: Tensor = self.forward(rows)
        return out.add_(residual)

    def _multiply(self, tile: Tensor) -> Tensor:
        tile = _aligned(tile)
        if self.packed:
            return _multiply_packed(tile, self._weight, self._bias)
        return functional.linear(tile, self._weight, self._bias)


class FreeLinear(nn.Module):
    """A linear layer that multiplies whatever rows there are at once: a row's bits may depend on their number."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, packed: bool) -> None:
        """weight: [out, in]; bias: [out]."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._multiply = _multiply_packed if packed else functional.linear
        self._weight = _pack(weight.detach(), _FREE_HINT) if packed else weight.detach().contiguous()
        self._bias = None if bias is None else bias.detach()

    def forward(self, rows: Tensor) -> Tensor:
        """rows: [..., in] → [..., out]."""
        flat = rows.reshape(-1, self.in_features).contiguous()
        return self._multiply(flat, self._weight, self._bias).view(*rows.shape[:-1], self.out_features)

    def added(self, rows: Tensor, residual: Tensor) -> Tensor:
        """See Linear."""
        out: Tensor = self.forward(rows)
        return out.add_(residual)


def linear_weights(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight [out, in] and bias [out] of a linear layer of any make; None if it is no such thing."""
    if type(module) is nn.Linear:
        return module.weight, module.bias
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # GPT-2's: a transposed linear layer
        return module.weight.t(), module.bias  # type: ignore[operator, return-value]  # untyped attributes
    return None


def inputs_divide(model: nn.Module, by: int) -> bool:
    """Whether every linear layer of a model has a multiple of so many inputs: kernels take that many at once."""
    found = [weights for module in model.modules() if (weights := linear_weights(module)) is not None]
    return all(weight.shape[1] % by == 0 for weight, _ in found)


def replace_linears(model: nn.Module, make: MakeLinear, head: nn.Module | None, make_head: MakeLinear) -> None:
    """Replace every linear layer of a model, one at a time so that no second copy of the weights is ever whole.

    ``make_head`` is for the one module that is ``head``.

    Raises Unsupported naming the module if weights are multiplied outside a linear layer (mixtures of experts,
    convolutions): a row's bits would depend on the number of rows.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            weights = linear_weights(child)
            if weights is not None:
                setattr(parent, name, (make_head if child is head else make)(*weights))
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                raise Unsupported(
                    "model",
                    got=f"{type(module).__name__} at {path} with weights {name} {tuple(parameter.shape)}",
                    hint="use a model whose weights are all in linear layers (no mixture of experts)",
                )
