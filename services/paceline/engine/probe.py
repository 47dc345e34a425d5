"""What is found out about a model by running it: the shape of its attention, and whether its bits hold still."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.engine.interface import Slice, StepPlan
from paceline.engine.kv_store import KVStore, LayerShape
from paceline.engine.pages import BlockTable
from paceline.speculation.errors import Unsupported
from paceline.speculation.params import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
Forward = Callable[[StepPlan, BlockTable, KVStore], Tensor]

_NOISE = 768  # positions of made-up histories that are all different; more than ``check_invariance`` has

_HANDLED = {"scaling", "sliding_window", "softcap"}
_HARMLESS = {  # what models pass along that changes nothing about causal attention without a cache or dropout
    "cache_position", "dropout", "is_causal", "layer_idx", "max_length_k", "max_length_q", "output_attentions",
    "output_hidden_states", "output_router_logits", "position_embeddings", "position_ids", "return_dict", "use_cache",
}  # fmt: skip


class ShapeProbe:
    """Stands in for attention during one forward pass over one sequence, and notes what each layer asks for.

    Raises Unsupported naming the argument a model needs and the engine does not have.
    """

    def __init__(self) -> None:
        self._shapes: dict[int, LayerShape] = {}
        self.options: dict[int, dict[str, Any]] = {}  # by layer, of those attention heeds

    def attend(
        self, layer: int, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> Tensor:
        """See attention.Attention; plain causal attention, which knows neither windows nor caps."""
        extra = {name for name, option in options.items() if option is not None} - _HANDLED - _HARMLESS
        if extra:
            raise Unsupported("model", got=f"attention with {', '.join(sorted(extra))}", hint="use another model")
        if options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
            raise Unsupported("model", got="attention that is not causal", hint="use a causal language model")
        if layer in self._shapes:
            raise Unsupported("model", got=f"layer {layer} attending twice", hint="use another model")
        if key.shape[3] % 2:
            # Tiles of queries would not all start on a cache line, see linear.
            raise Unsupported("model", got=f"an odd head dimension, {key.shape[3]}", hint="use another model")
        self._shapes[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        self.options[layer] = {name: options.get(name) for name in _HANDLED}
        attended = functional.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True, scale=options.get("scaling"), enable_gqa=True
        )
        return attended.transpose(1, 2).to(query.dtype)

    def shapes(self, layers: int) -> list[LayerShape]:
        """The shape of every layer. Raises Unsupported if some layer never called the attention function."""
        if sorted(self._shapes) != list(range(layers)):
            raise Unsupported(
                "model",
                got=f"{len(self._shapes)} of {layers} layers using transformers' attention interface",
                hint="use a model of which every layer is causal self-attention",
            )
        return [self._shapes[layer] for layer in range(layers)]


def require_row_local_positions(config: Any) -> None:
    """Refuse rotary embeddings that rescale with the longest position of a batch: neighbours would change bits."""
    rope = getattr(config, "rope_parameters", None) or {}
    for entry in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if entry.get("rope_type") in {"dynamic", "longrope"}:
            raise Unsupported(
                "model.rope_type", got=entry["rope_type"], hint="use a model whose rotary embedding is fixed"
            )


class Scratch:
    """A small KV store of its own, with made-up histories, to run steps on that no session will notice."""

    def __init__(
        self,
        tokens: int,
        shapes: list[LayerShape],
        *,
        dtype: torch.dtype,
        device: torch.device,
        widths: Mapping[str, int] | None = None,
    ) -> None:
        self.table = BlockTable(tokens)
        self.store = KVStore(shapes, self.table, dtype=dtype, device=device, widths=widths)
        generator = torch.Generator(device).manual_seed(1)
        for tensor in (*self.store.keys, *self.store.values):
            noise = tensor[:_NOISE].normal_(generator=generator)
            for start in range(_NOISE, len(tensor), _NOISE):  # noise costs more than the steps run on it
                tensor[start : start + _NOISE] = noise[: len(tensor) - start]

    def session(self, session_id: str, history: int, room: int) -> None:
        """A session that holds ``history`` positions of noise and may grow by ``room``."""
        assert self.table.reserve(session_id, history + room) is not None
        self.table.holding(session_id).length = history


def _plan(*slices: Slice) -> StepPlan:
    return StepPlan(0, slices)


def _slice(session_id: str, start: int, tokens: tuple[int, ...]) -> Slice:
    return Slice(session_id, start, tokens, samples=len(tokens), sampling=GREEDY, prompt_len=1)


def check_invariance(forward: Forward, scratch: Scratch, *, row_tile: int, vocab_size: int) -> None:
    """Run the same tokens as one chunk, and in pieces among neighbours; their logits must have the same bits.

    A few steps, at every load: the kernels underneath are not ours and their versions change.
    Raises Unsupported if the bits differ.
    """
    rows, history = row_tile + 4, 300
    tokens = tuple((7 + 31 * i) % vocab_size for i in range(rows))
    neighbour = tuple((11 + 17 * i) % vocab_size for i in range(5))
    scratch.session("probe", history, rows)
    scratch.session("neighbour", 40, 5)
    whole = forward(_plan(_slice("probe", history, tokens)), scratch.table, scratch.store)

    def pieces() -> Iterator[Tensor]:
        beside, cut = _slice("neighbour", 40, neighbour), rows - 3
        yield forward(_plan(beside, _slice("probe", history, tokens[:cut])), scratch.table, scratch.store)[5:]
        yield forward(_plan(_slice("probe", history + cut, tokens[cut:-1]), beside), scratch.table, scratch.store)[:2]
        yield forward(_plan(_slice("probe", history + rows - 1, tokens[-1:])), scratch.table, scratch.store)

    if not torch.equal(whole, torch.cat(list(pieces()))):
        raise Unsupported(
            "model",
            got="logits whose bits depend on the batch",
            hint="the kernels here cannot keep deterministic mode; try another row_tile or dtype",
        )


def cost_plans(scratch: Scratch, rows: int, per_session: int = 8, history: int = 120) -> StepPlan:
    """A step of ``rows`` rows, all sampled, spread over sessions that already hold some positions."""
    slices = []
    for first in range(0, rows, per_session):
        count = min(per_session, rows - first)
        session_id = f"{rows}:{first}"
        scratch.session(session_id, history, count)
        slices.append(_slice(session_id, history, (1,) * count))
    return StepPlan(0, tuple(slices))
