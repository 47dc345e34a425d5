"""Attention of a step by the engine's own kernels (kernels/attention.cpp), straight from the pages."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from paceline.engine.batch import Batch
from paceline.engine.kv_store import KVStore, LayerShape
from paceline.engine.native import InputArguments, Kernels, LayerArguments, StepArguments


class NativeAttention:
    """Attention of one step."""

    def __init__(self, kernels: Kernels, batch: Batch, store: KVStore) -> None:
        assert batch.ragged is not None
        self._attend = kernels.attend
        self._batch = batch
        self.store = store
        ragged = batch.ragged
        self._step = StepArguments(
            ragged.tiles.data_ptr(), ragged.pages.data_ptr(), len(ragged.tiles), torch.get_num_threads()
        )
        self.step_address = ctypes.addressof(self._step)
        self._padded = batch.input_ids.shape[1] > len(batch.slots)

    def attend(
        self, layer: int, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> Tensor:
        """See attention.Attention. Padding rows come out as zeros."""
        del module
        query, key, value = (_dense(tensor) for tensor in (query, key, value))
        heads, rows = query.shape[1], query.shape[2]
        out = self._room(rows, heads, self.store.shapes[layer], query)
        inputs = InputArguments(
            query.data_ptr(), key.data_ptr(), value.data_ptr(),
            query.stride(2), query.stride(1), key.stride(2), key.stride(1), value.stride(2), value.stride(1),
            None, None, None, out.data_ptr(),
        )  # fmt: skip
        self._run(self.layer_arguments(layer, heads, options), inputs)
        return out.view(1, rows, heads, -1)

    def attend_rotating(
        self, layer: int, arguments: LayerArguments, packed: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """packed: [N, (heads + 2 * kv_heads) * dim], queries, keys and values before rotation; cos, sin: [N, dim] →
        [N, heads * dim]."""
        shape, heads = self.store.shapes[layer], arguments.heads
        out = self._room(packed.shape[0], heads, shape, packed)
        rotated = torch.empty_like(out)
        at, size, dim, width = packed.data_ptr(), packed.element_size(), shape.key_dim, packed.shape[1]
        key = at + heads * dim * size
        inputs = InputArguments(
            at, key, key + shape.kv_heads * dim * size, width, dim, width, dim, width, dim,
            cos.data_ptr(), sin.data_ptr(), rotated.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        arguments.keys, arguments.values = self.store.keys[layer].data_ptr(), self.store.values[layer].data_ptr()
        self._run(arguments, inputs)
        return out

    def layer_arguments(self, layer: int, heads: int, options: dict[str, Any]) -> LayerArguments:
        """What the kernel has to know about a layer of this store."""
        arguments = layer_arguments(self.store.shapes[layer], heads, options)
        arguments.keys, arguments.values = self.store.keys[layer].data_ptr(), self.store.values[layer].data_ptr()
        return arguments

    def _run(self, layer: LayerArguments, inputs: InputArguments) -> None:
        self._attend(ctypes.addressof(layer), self.step_address, ctypes.addressof(inputs))

    def _room(self, rows: int, heads: int, shape: LayerShape, like: Tensor) -> Tensor:
        make = like.new_zeros if self._padded else like.new_empty
        return make(rows, heads * shape.value_dim)


def layer_arguments(shape: LayerShape, heads: int, options: dict[str, Any]) -> LayerArguments:
    """Arguments of a layer whose store is still to be named."""
    scaling, softcap, window = options.get("scaling"), options.get("softcap"), options.get("sliding_window")
    return LayerArguments(
        None, None, heads, shape.kv_heads, shape.key_dim, shape.value_dim, window or 0,
        shape.key_dim**-0.5 if scaling is None else scaling, softcap or 0.0,
    )  # fmt: skip


def _dense(tensor: Tensor) -> Tensor:
    """[1, heads, N, dim] with the last dimension dense, whatever the others' strides."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()
