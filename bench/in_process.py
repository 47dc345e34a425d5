"""What the cluster is compared with: Hugging Face's generation, and an engine without any cluster around it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from paceline.engine.interface import Engine, Slice, StepPlan
from paceline.engine.loading import EngineSpec, load_engine
from paceline.runtime.compute import ComputeThread
from paceline.speculation.params import SamplingParams

from bench.reference import Reference

GREEDY = SamplingParams(temperature=0)
KV_TOKENS = 4096
STEPS = 9


class InProcess:
    """Both, loaded and run in one thread of this process: torch is slow in a second one (see runtime.compute)."""

    def __init__(self, thread: ComputeThread, reference: Reference, engine: Engine) -> None:
        self._thread, self._reference, self._engine = thread, reference, engine

    @classmethod
    async def load(cls, model: str, threads: int) -> InProcess:
        """Both in bfloat16."""
        thread = ComputeThread("bench")
        spec = EngineSpec(model=model, threads=threads, kv_tokens=KV_TOKENS)
        engine = (await thread.run(partial(load_engine, spec))).engine
        reference = await thread.run(partial(Reference, model, "bfloat16", threads))
        return cls(thread, reference, engine)

    async def greedy(self, prompt: Sequence[int], max_tokens: int, **options: Any) -> tuple[list[int], float]:
        """See Reference."""
        return await self._thread.run(partial(self._reference.greedy, prompt, max_tokens, **options))

    async def batched(self, prompts: Sequence[Sequence[int]], tokens: int) -> float:
        """Tokens per second of batched ``generate``; every answer is ``tokens`` long."""
        seconds = await self._thread.run(partial(self._reference.batch_seconds, prompts, tokens))
        return len(prompts) * tokens / seconds

    async def step_seconds(self, prompt: Sequence[int]) -> float:
        """Median time of a step of one row after a prompt."""
        return await self._thread.run(partial(self._steps, tuple(prompt)))

    def _steps(self, prompt: tuple[int, ...]) -> float:
        if not self._engine.reserve("step", len(prompt) + 1):
            raise RuntimeError(f"expected a prompt of at most {KV_TOKENS - 1} tokens, got {len(prompt)}")
        for start in range(0, len(prompt), 128):
            piece = prompt[start : start + 128]
            self._engine.step(StepPlan(0, (Slice("step", start, piece, 0, GREEDY, len(prompt)),)))
        row = StepPlan(1, (Slice("step", len(prompt), prompt[-1:], 1, GREEDY, len(prompt)),))
        seconds = []
        for _ in range(STEPS):
            started = time.perf_counter()
            self._engine.step(row)
            seconds.append(time.perf_counter() - started)
        self._engine.free("step")
        return statistics.median(seconds)
