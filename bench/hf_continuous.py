"""Hugging Face's continuous batching, in a process of its own: it computes in a thread that it starts itself.

Reads ``{"model", "threads", "prompts", "tokens"}`` as JSON from standard input, writes ``{"tokens", "seconds"}``.
"""

from __future__ import annotations

import json
import sys
import time
from threading import Thread
from typing import Any

import torch
from paceline.engine.models import resolve
from transformers import AutoModelForCausalLM, GenerationConfig


def main() -> int:
    asked = json.load(sys.stdin)
    loaded: list[Any] = []

    def load() -> None:
        # In a thread that ends: its OpenMP team goes with it, and that of the manager's thread has the CPUs to itself.
        torch.set_num_threads(asked["threads"])
        folder = resolve(asked["model"]).folder
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        loaded.append(model.eval())

    loader = Thread(target=load)
    loader.start()
    loader.join()
    torch.set_num_threads(asked["threads"])
    kind: Any = GenerationConfig  # untyped
    options = kind(max_new_tokens=asked["tokens"], do_sample=False, eos_token_id=-1, pad_token_id=0)
    started = time.perf_counter()
    out = loaded[0].generate_batch(asked["prompts"], generation_config=options)
    seconds = time.perf_counter() - started
    json.dump({"tokens": sum(len(each.generated_tokens) for each in out.values()), "seconds": seconds}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
