"""Matrix products in tiles of one row count, so that a row's bits never depend on how many rows there are.

Between products of different row counts a row's bits may differ; between products of one row count they do not,
wherever the row stands and whatever its neighbours (checked at load for the kernels at hand). On a CPU the weights are
packed once for that row count, which is also what makes the product fast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.speculation.errors import Unsupported

_CACHE_LINE_BYTES = 64


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

    def _multiply(self, tile: Tensor) -> Tensor:
        tile = _aligned(tile)
        if self.packed:
            return _multiply_packed(tile, self._weight, self._bias)
        return functional.linear(tile, self._weight, self._bias)


def tile_linears(model: nn.Module, *, row_tile: int, packed: bool) -> None:
    """Replace every linear layer of a model, one at a time so that no second copy of the weights is ever whole.

    Raises Unsupported naming the module if weights are multiplied outside a linear layer (mixtures of experts,
    convolutions): those products could not be tiled.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, TiledLinear(child.weight, child.bias, row_tile=row_tile, packed=packed))
            elif type(child).__name__ == "Conv1D" and hasattr(child, "nf"):  # GPT-2's: a transposed linear layer
                weight = child.weight.t().contiguous()  # type: ignore[operator]  # untyped attribute
                setattr(parent, name, TiledLinear(weight, child.bias, row_tile=row_tile, packed=packed))  # type: ignore[arg-type]
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
