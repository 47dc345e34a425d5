"""A Hugging Face model made ready for the engine: its attention routed, its layers fused where they can be, its linear
layers replaced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from paceline.engine import attention, native, probe
from paceline.engine.batch import KV_BLOCK, Layout
from paceline.engine.fused import FusedLayer, FusedStack, Witness, looks_like_llama, witnessing
from paceline.engine.interface import Slice, StepPlan
from paceline.engine.kv_store import LayerShape
from paceline.engine.linear import (
    FreeLinear,
    MakeLinear,
    NativeLinear,
    TiledLinear,
    inputs_divide,
    packing_works,
    replace_linears,
)
from paceline.engine.native import Kernels
from paceline.engine.native_attention import NativeAttention, layer_arguments
from paceline.engine.quantised import Scheme, quantise

_WITNESS_ROWS = 16


@dataclass(frozen=True, slots=True)
class Products:
    """How linear layers are multiplied by."""

    name: str  # native, packed, plain or free; native int8 or native int4
    row_tile: int
    make: MakeLinear  # of weights as they are
    make_layer: MakeLinear  # of a model's layers: quantised, if its weights are
    make_head: MakeLinear
    native: bool
    quantisation: str = "none"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of a model."""

    shapes: list[LayerShape]
    layout: Layout
    kernels: Kernels | None
    products: Products
    fused: int  # layers that run fused

    def facts(self) -> dict[str, str]:
        """What of it fixes bits."""
        tile = self.layout.query_tile
        return {
            "row_tile": str(self.layout.row_tile),
            "matmul": self.products.name,
            "quantisation": self.products.quantisation,
            "attention": "native" if self.kernels else f"float32 tree, query tile {tile}, block {KV_BLOCK}",
            "native": self.kernels.identity if self.kernels else "none",
            "fused_layers": str(self.fused),
        }


@torch.inference_mode()
def prepare(
    model: Any, layout: Layout, *, row_tile: int | None, deterministic: bool = True, scheme: Scheme | None = None
) -> Prepared:
    """Change ``model`` in place. ``layout`` is that of a model yet unknown; row_tile None is what suits the products;
    with a scheme, weights of linear layers are quantised.

    Raises Unsupported for models whose bits could not be kept.
    """
    device, dtype = layout.device, model.dtype
    attention.register()
    model.set_attn_implementation(attention.NAME)
    kernels = native.kernels(dtype, device)
    layers = _decoder_layers(model)
    shape_probe, witnesses = _witness(model, layers, device)
    shapes = shape_probe.shapes(model.config.get_text_config().num_hidden_layers)
    if any(shape.key_dim > native.MAX_KEY_DIM for shape in shapes):
        kernels = None
    products = _products(model, kernels, device, row_tile, deterministic=deterministic)
    if scheme is not None:
        products = _quantised(model, kernels, products, row_tile, scheme)
    layout = replace(layout, row_tile=products.row_tile, ragged=kernels is not None)
    fused = 0
    if kernels is not None:
        check = _Check(shapes, layout, kernels)
        for place, layer in enumerate(layers):
            options = shape_probe.options.get(place, {})
            if place not in witnesses or not looks_like_llama(layer, shapes[place], options):
                continue
            arguments = _arguments(layer, shapes[place], options)
            candidate = FusedLayer(layer, arguments, kernels, products.make)
            if check.passes(candidate, witnesses[place]):
                quantised = scheme is not None  # a shape that is right with weights as they are is right with any
                layers[place] = FusedLayer(layer, arguments, kernels, products.make_layer) if quantised else candidate
                fused += 1
        if fused == len(shapes) and products.native:
            model.get_decoder().layers = nn.ModuleList([FusedStack([*layers], kernels)])
    replace_linears(model, products.make_layer, model.get_output_embeddings(), products.make_head)
    return Prepared(shapes, layout, kernels, products, fused)


def _products(
    model: nn.Module, kernels: Kernels | None, device: torch.device, row_tile: int | None, *, deterministic: bool
) -> Products:
    """Which products a model runs on with its weights as they are."""
    dtype: torch.dtype = model.dtype  # type: ignore[assignment]  # nn.Module attributes are untyped
    if not deterministic:
        make = _free(device, dtype)
        return Products("free", 1, make, make, make, native=False)
    if kernels is not None and kernels.multiplies and inputs_divide(model, 2):
        make = _native(kernels)
        return Products("native", row_tile or 1, make, make, make, native=True)
    tile = row_tile or (16 if device.type == "cpu" else 64)
    packed = device.type == "cpu" and packing_works(dtype, tile)

    def tiled(weight: Tensor, bias: Tensor | None) -> nn.Module:
        return TiledLinear(weight, bias, row_tile=tile, packed=packed)

    return Products("packed" if packed else "plain", tile, tiled, tiled, tiled, native=False)


def _quantised(
    model: nn.Module, kernels: Kernels | None, products: Products, row_tile: int | None, scheme: Scheme
) -> Products:
    """The products of quantised weights: of their integers, or of the numbers they stand for."""
    if kernels is not None and kernels.multiplies_integers and inputs_divide(model, 4):
        name, tile, make = f"native {scheme.name}", row_tile or 1, _native(kernels)
        layer, head = (_native_integers(kernels, bits) for bits in (scheme.bits, scheme.head_bits))
        return Products(name, tile, make, layer, head, native=True, quantisation=str(scheme))
    layer, head = (_dequantising(products.make, bits) for bits in (scheme.bits, scheme.head_bits))
    return replace(products, make_layer=layer, make_head=head, quantisation=str(scheme))


def _native(kernels: Kernels) -> MakeLinear:
    return lambda weight, bias: NativeLinear(weight, bias, kernels=kernels)


def _native_integers(kernels: Kernels, bits: int) -> MakeLinear:
    return lambda weight, bias: NativeLinear(quantise(weight, bits), bias, kernels=kernels)


def _dequantising(make: MakeLinear, bits: int) -> MakeLinear:
    return lambda weight, bias: make(quantise(weight, bits).dequantised(weight.dtype), bias)


def _free(device: torch.device, dtype: torch.dtype) -> MakeLinear:
    packed = device.type == "cpu" and packing_works(dtype, _WITNESS_ROWS)
    return lambda weight, bias: FreeLinear(weight, bias, packed=packed)


def _decoder_layers(model: Any) -> nn.ModuleList:
    """The list a model's decoder runs through; empty where it is kept differently."""
    layers = getattr(model.get_decoder(), "layers", None)
    return layers if isinstance(layers, nn.ModuleList) else nn.ModuleList()


def _witness(model: Any, layers: nn.ModuleList, device: torch.device) -> tuple[probe.ShapeProbe, dict[int, Witness]]:
    shape_probe = probe.ShapeProbe()
    positions = torch.arange(_WITNESS_ROWS, device=device)[None]
    tokens = (7 + 31 * positions) % model.config.get_text_config().vocab_size
    with attention.attending(shape_probe), witnessing(list(layers)) as witnesses:
        model.get_decoder()(input_ids=tokens, position_ids=positions, use_cache=False)
    return shape_probe, witnesses


def _arguments(layer: Any, shape: LayerShape, options: dict[str, Any]) -> native.LayerArguments:
    return layer_arguments(shape, layer.self_attn.q_proj.out_features // shape.key_dim, options)


class _Check:
    """Runs fused layers on what the layers they replace were given."""

    def __init__(self, shapes: list[LayerShape], layout: Layout, kernels: Kernels) -> None:
        scratch = probe.Scratch(_WITNESS_ROWS, shapes, dtype=kernels.dtype, device=layout.device)
        scratch.session("witness", 0, _WITNESS_ROWS)
        tokens = (0,) * _WITNESS_ROWS
        plan = StepPlan(0, (Slice("witness", 0, tokens, samples=0, sampling=probe.GREEDY, prompt_len=1),))
        batch = layout.lay_out(plan, scratch.table)
        self._rows = batch.input_ids.shape[1]
        self._attention = NativeAttention(kernels, batch, scratch.store)

    def passes(self, layer: FusedLayer, witness: Witness) -> bool:
        """Whether a fused layer computes what its original did."""
        cos, sin = (self._padded(part) for part in witness.position_embeddings)
        with attention.attending(self._attention):
            output: Tensor = layer(self._padded(witness.inputs), position_embeddings=(cos, sin))
        return witness.agrees(output[:, :_WITNESS_ROWS])

    def _padded(self, rows: Tensor) -> Tensor:
        return nn.functional.pad(rows, (0, 0, 0, self._rows - rows.shape[1]))
