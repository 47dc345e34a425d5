"""The engine behind real models: any Hugging Face causal language model.

A step is one forward pass over the flattened rows of all its slices. In deterministic mode a row's logits have the same
bits whatever the batch, the verify length, the chunking of a prompt and the neighbours: products compute a row the same
way whatever their row count, or run on tiles of one (``linear``); attention reduces by the row's own KV length
(``attention``, ``native_attention``), and the rest of a transformer works row by row. ``probe.check_invariance`` holds
this at every load.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paceline.engine import attention, numerics, probe, timing
from paceline.engine.batch import KV_BLOCK, Batch, Layout
from paceline.engine.interface import EngineInfo, FeatureRows, Hidden, KvRequest, StepPlan, StepResult
from paceline.engine.kv_store import KVStore
from paceline.engine.native_attention import NativeAttention
from paceline.engine.native_draw import NativeDraw
from paceline.engine.outcome import draw
from paceline.engine.pages import PAGE, BlockTable, context_exceeded
from paceline.engine.prefix import salt_of
from paceline.engine.prepare import prepare
from paceline.engine.projection import Projection, Projector
from paceline.engine.quantised import scheme_of
from paceline.engine.taps import Tapped, Taps
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.sampling import Row, sample

_ATTENTION_BYTES = 48 << 20  # what attention may hold at once, in K and V copies
_PROBE_ROWS = 16  # checks and measurements go by multiples of it, where rows are not tiled


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How a model runs."""

    kv_tokens: int = 4096  # KV positions to hold, over all sessions
    row_tile: int | None = None  # rows per matrix product; None is what the products at hand want
    query_tile: int = 8  # rows of a session attention takes together
    device: str = "cpu"
    deterministic: bool = True  # False leaves row counts of products, and so the bits, to whatever a step holds
    weights: str = ""  # int8 or int4; empty keeps them as they are


class TorchEngine:
    """Engine over a loaded Hugging Face model, which it takes over and changes."""

    def __init__(
        self,
        model: Any,
        *,
        model_id: str,
        fingerprint: str,
        options: TorchOptions,
        projectors: Sequence[Projector] = (),
    ) -> None:
        """
        Args:
            model: a ``PreTrainedModel`` with a language modelling head, in the dtype it shall run in.
            projectors: of the context features kept for drafters, of different fingerprints.

        Raises:
            Unsupported: the model's bits could not be kept, or its layers' outputs are out of reach.
            InvalidRequest: a projector does not fit the model, or ``options.weights`` are no scheme.
        """
        self._device = torch.device(options.device)
        config = model.config.get_text_config()
        probe.require_row_local_positions(config)
        self._dtype: torch.dtype = model.dtype
        self._model = model.eval().requires_grad_(False).to(self._device)
        layout = Layout(1, options.query_tile, 1, self._device)
        self._prepared = prepare(
            self._model,
            layout,
            row_tile=options.row_tile,
            deterministic=options.deterministic,
            scheme=scheme_of(options.weights),
        )
        self._layout = replace(self._prepared.layout, max_blocks=self._max_blocks())
        self._table = BlockTable(options.kv_tokens)
        self._widths = {each.fingerprint: each.width for each in projectors}
        self._store = KVStore(
            self._prepared.shapes, self._table, dtype=self._dtype, device=self._device, widths=self._widths
        )
        facts = numerics.facts(
            fingerprint=fingerprint, dtype=self._dtype, device=self._device, engine=self._prepared.facts()
        )
        self._info = EngineInfo(
            model_id=model_id,
            fingerprint=fingerprint,
            vocab_size=config.vocab_size,
            context_length=getattr(config, "max_position_embeddings", None) or self._table.tokens,
            eos_token_ids=_eos_token_ids(model),
            numerics=facts,
            numerics_class=numerics.numerics_class(facts),
            kv_tokens=self._table.tokens,
            row_tile=self._layout.row_tile,
            layers=len(self._prepared.shapes),
            hidden_size=config.hidden_size,
            features={name: width * self._dtype.itemsize for name, width in self._widths.items()},
            feature_dtype=str(self._dtype).removeprefix("torch."),
        )
        self._taps = Taps(self._model, self._info.layers)
        self._projections = [self._projection(each) for each in projectors]
        check_tile = max(_PROBE_ROWS, self._layout.row_tile)
        if options.deterministic:
            probe.check_invariance(self._forward, self.scratch(640), row_tile=check_tile, vocab_size=config.vocab_size)
        kernels = self._prepared.kernels
        self._fast = None if kernels is None else NativeDraw(kernels)
        self._curve: tuple[tuple[int, float], ...] = ()

    @property
    def info(self) -> EngineInfo:
        """See Engine."""
        return self._info

    def reserve(self, session_id: str, max_len: int) -> bool:
        """See Engine. Raises InvalidRequest beyond the model's context length: waiting would not help."""
        if max_len > self._info.context_length:
            raise context_exceeded(max_len, self._info.context_length)
        return self._store.reserve(session_id, max_len)

    def admit(self, request: KvRequest) -> int | None:
        """See Engine. Raises InvalidRequest as ``reserve`` does."""
        if request.max_len > self._info.context_length:
            raise context_exceeded(request.max_len, self._info.context_length)
        return self._store.admit(request, salt_of(self._info.numerics_class, request.tenant, page=PAGE))

    def publish(self, session_id: str, tokens: Sequence[int], length: int) -> None:
        """See Engine."""
        self._table.publish(session_id, tokens, length)

    def free(self, session_id: str, *, keep: bool = True) -> None:
        """See Engine."""
        self._table.free(session_id, keep=keep)

    def check_integrity(self) -> None:
        """Assert that KV pages add up; to be called when idle."""
        self._table.check_integrity()

    def step(self, plan: StepPlan) -> StepResult:
        """See Engine. Raises FloatingPointError if the model yields NaN, and what ``Taps.require`` does."""
        started = time.perf_counter()
        if plan.wanted is not None:
            self._taps.require(plan.wanted.layers, "layers")
        logits, hidden = self._run(plan, self._table, self._store)
        drawn = draw(plan, logits, self._fast)
        return replace(drawn, duration_s=time.perf_counter() - started, hidden=hidden)

    def forward(self, plan: StepPlan, scratch: probe.Scratch | None = None) -> Tensor:
        """Run a plan without sampling: logits [R, V] of its slices' ``logit_rows``, in the model's dtype.

        With ``scratch``, on its sessions instead of the engine's.
        """
        if scratch is None:
            return self._forward(plan, self._table, self._store)
        return self._forward(plan, scratch.table, scratch.store)

    def scratch(self, tokens: int) -> probe.Scratch:
        """A KV store of its own for so many positions, to measure steps on."""
        return probe.Scratch(tokens, self._prepared.shapes, dtype=self._dtype, device=self._device, widths=self._widths)

    def locate_features(self, session_id: str, projector: str, start: int, end: int) -> FeatureRows:
        """See Engine."""
        assert projector in self._widths, projector
        return FeatureRows(projector, self._table.slots(session_id, start, end))

    @torch.inference_mode()
    def read_features(self, rows: Sequence[FeatureRows]) -> list[bytes]:
        """See Engine."""
        return [_bytes(self._store.features[each.projector], each.slots) for each in rows]

    def sample(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """Draw as a step does: see ``sampling.sample``."""
        return sample(logits, rows, self._fast)

    def cost_curve(self) -> tuple[tuple[int, float], ...]:
        """See Engine. Measured at the first call, which also warms the engine up; see ``timing.measure``."""
        if not self._curve:
            tile = max(_PROBE_ROWS, self._layout.row_tile)
            counts = (1, tile // 2, tile, 2 * tile, 4 * tile, 8 * tile)
            self._curve = timing.measure(self._step_of, counts, time.perf_counter)
        return self._curve

    def _step_of(self, rows: int) -> Callable[[], Tensor]:
        scratch = self.scratch(-(-rows // 8) * KV_BLOCK + PAGE)
        plan = probe.cost_plans(scratch, rows)
        described = [Row(probe.GREEDY, 0)] * rows
        return lambda: self.sample(self.forward(plan, scratch), described)

    def _forward(self, plan: StepPlan, table: BlockTable, store: KVStore) -> Tensor:
        return self._run(plan, table, store)[0]

    @torch.inference_mode()
    def _run(self, plan: StepPlan, table: BlockTable, store: KVStore) -> tuple[Tensor, tuple[Hidden | None, ...]]:
        """Logits, and the hidden states wanted."""
        table.begin(plan)
        store.clear()
        batch = self._layout.lay_out(plan, table)
        hidden: tuple[Hidden | None, ...] = ()
        layers = {layer for each in self._projections for layer in each.projector.layers}
        with attention.attending(self._attention(batch, store)):
            if plan.wanted is None and not layers:
                logits = self._logits(batch)
            else:
                with self._taps.tapping(layers | set(plan.wanted.layers if plan.wanted else ())) as tapped:
                    logits = self._logits(batch)
                self._keep(tapped, batch, store)
                hidden = tapped.by_slice(plan.wanted, plan.slices) if plan.wanted else ()
        table.commit(plan)
        return logits, hidden

    def _keep(self, tapped: Tapped, batch: Batch, store: KVStore) -> None:
        """Store the context features of a step's rows."""
        for each in self._projections:
            features = each(tapped.together(each.projector.layers))
            kept = store.features[each.projector.fingerprint]
            kept.index_copy_(0, batch.slots, features[: len(batch.slots)])

    def _projection(self, projector: Projector) -> Projection:
        self._taps.require(projector.layers, "projectors")
        inputs = len(projector.layers) * self._info.hidden_size
        if projector.weight.shape[1] != inputs:
            expected = f"a projector of {len(projector.layers)} layers of {self._info.hidden_size}: {inputs} inputs"
            raise InvalidRequest("projectors", expected=expected, got=projector.weight.shape[1])
        return Projection(projector, self._prepared.products.make, self._prepared.kernels, self._store.keys[0])

    def _logits(self, batch: Batch) -> Tensor:
        arguments = {"input_ids": batch.input_ids, "position_ids": batch.positions, "use_cache": False}
        if batch.samples:
            logits: Tensor = self._model(**arguments, logits_to_keep=batch.sampled).logits[0, : batch.samples]
            return logits
        # A prompt's chunk: nobody asks for logits, so the head is left out.
        self._model.get_decoder()(**arguments)
        return torch.empty(0, self._info.vocab_size, dtype=self._dtype, device=self._device)

    def _attention(self, batch: Batch, store: KVStore) -> attention.Attention:
        kernels = self._prepared.kernels
        return attention.TorchAttention(batch, store) if kernels is None else NativeAttention(kernels, batch, store)

    def _max_blocks(self) -> int:
        widest = max(shape.kv_heads * (shape.key_dim + shape.value_dim) for shape in self._prepared.shapes)
        return max(1, _ATTENTION_BYTES // (KV_BLOCK * widest * 4))


def _bytes(features: Tensor, slots: Sequence[int]) -> bytes:
    """Rows of a tensor [slots, width], back to back."""
    rows = features.index_select(0, torch.tensor(slots, device=features.device)).cpu()
    return rows.view(torch.uint8).numpy().tobytes()


def _eos_token_ids(model: Any) -> tuple[int, ...]:
    found: set[int] = set()
    for config in (model.generation_config, model.config.get_text_config()):
        eos = getattr(config, "eos_token_id", None)
        found |= set() if eos is None else {eos} if isinstance(eos, int) else set(eos)
    return tuple(sorted(found))
