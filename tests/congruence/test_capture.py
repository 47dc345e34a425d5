"""What a capture keeps is what the service answers, and what transformers computes."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from paceline.cache.target import TargetCache
from paceline.cache.target.verify import verify
from paceline.engine.loading import load_model
from paceline.engine.models import fetch
from paceline.router.auth import OPEN
from paceline.router.ingress import grpc_ingress
from paceline.router.router import Router
from paceline.runtime.config import RouterConfig
from paceline.training.capture.__main__ import main
from paceline.training.capture.answers import load
from paceline.training.capture.conversations import Conversation
from paceline_client import AsyncClient
from torch import Tensor

from tests.congruence.small_cluster import small_cluster
from tests.unit.main_kit import ended_by, start

PROMPTS: list[dict[str, Any]] = [
    {"turns": ["Hello", "And then?"], "system": "Be kind."},
    {"turns": ["Tell me of rivers."]},
    {"turns": ["One", "Two", "Three"]},
]


def capture(folder: Path, model: str, *options: str) -> None:
    (folder / "p.jsonl").write_text("".join(json.dumps(each) + "\n" for each in PROMPTS))
    base = ["--model", model, "--prompts", str(folder / "p.jsonl"), "--out", str(folder / "cache")]
    assert main([*base, "--max-tokens", "24", *options]) == 0


@pytest.mark.parametrize("mixture", [["--temperature", "0"], ["--temperature", "0.8", "--top-p", "0.9", "--seed", "9"]])
async def test_answers_are_the_services_own(tmp_path: Path, mixture: list[str]) -> None:
    model = "fake:seed=7,eos=0.03"
    capture(tmp_path, model, "--samples", "2", *mixture)
    found = load(tmp_path / "cache.answers.jsonl")
    answers = {each.place: each for each in found.answers}
    top_p = float(str(found.settings["top_p"]))
    asked = {Conversation(tuple(each["turns"]), each.get("system")).digest: each for each in PROMPTS}
    checked = 0
    async with small_cluster(model, model) as (_, client):
        for digest, choice in {(each.conversation, each.choice) for each in found.answers}:
            conversation = asked[digest]
            messages = [{"role": "system", "content": conversation["system"]}] if "system" in conversation else []
            for turn, text in enumerate(conversation["turns"]):
                answer = answers[digest, choice, turn]
                messages.append({"role": "user", "content": text})
                served = await client.generate(
                    messages=messages, seed=answer.seed, choice=choice, temperature=answer.temperature, top_p=top_p,
                    max_tokens=24,
                )  # fmt: skip
                assert tuple(served.token_ids) == answer.tokens
                assert served.usage.prompt_tokens == len(answer.prompt)
                messages.append({"role": "assistant", "content": served.text})
                checked += 1
    assert checked == len(answers)


async def test_a_target_keeps_what_it_serves(tmp_path: Path) -> None:
    model, folder = "fake:seed=7,eos=0.03", tmp_path / "captures"
    child, ready = await asyncio.to_thread(
        start, "target", f"engine.model='{model}'", f"capture.folder={folder}", "capture.tenants=['*']"
    )
    try:
        router = await Router.connect(RouterConfig(targets=(ready.address,)), rng=random.Random(3))
        ingress = grpc_ingress(router, OPEN, "127.0.0.1", 0, max_calls=64, shared=False)
        async with AsyncClient(f"127.0.0.1:{await ingress.start()}") as client:
            texts = [f"Tell me of {what}." for what in ("rivers", "stones", "rivers and stones")]
            served = [await client.generate(text, seed=3, max_tokens=24) for text in texts]
        await ingress.stop(0)
        await router.close()
        await asyncio.sleep(0.5)  # releases are on their way
    finally:
        told = await asyncio.to_thread(ended_by, child, signal.SIGTERM)
    cache = TargetCache.open(folder / "000000")
    assert f"captured 3 sessions of {cache.lengths.sum()} tokens; gave up 0" in told
    prompts = [tuple(text.encode()) for text in texts]
    wanted = {prompt + tuple(each.token_ids[:-1]) for prompt, each in zip(prompts, served, strict=True)}
    assert {tuple(each.input_ids.tolist()) for each in cache} == wanted
    assert verify(cache).sound


@pytest.mark.model
def test_hidden_states_are_what_transformers_computes(tmp_path: Path) -> None:
    capture(tmp_path, "demo@layers=2", "--layers=-1,0,1", "--step-tokens", "48", "--sessions", "2")
    model = load_model(fetch("demo"), dtype=torch.float32, layers=2)
    cache = TargetCache.open(tmp_path / "cache")
    assert cache.manifest.target_layer_ids == (-1, 0, 1)
    for sample in cache:
        with torch.no_grad():
            out = model(torch.from_numpy(sample.input_ids)[None].long(), output_hidden_states=True)
        embedded, first, last = (states[0] for states in out.hidden_states)
        ours = torch.chunk(floats(sample.hidden), 3, dim=1)
        assert torch.equal(ours[0], embedded)
        for mine, theirs in ((ours[1], first), (floats(sample.last_hidden), last)):
            off = (mine - theirs).square().mean().sqrt() / theirs.square().mean().sqrt()
            assert off < 0.02, off
        normed = model.model.norm(ours[2])
        torch.testing.assert_close(normed, floats(sample.last_hidden), rtol=2**-6, atol=2e-2)
        logits = model.lm_head(floats(sample.last_hidden))[sample.loss_mask.nonzero()[0] - 1]
        said = sample.input_ids[sample.loss_mask.nonzero()[0]]
        ranks = (logits > logits.gather(1, torch.from_numpy(said).long()[:, None])).sum(1)
        assert ranks.median() < 50, "the head on the states before them makes the answer's tokens likely"


def floats(bits: NDArray[np.uint16]) -> Tensor:
    """bf16 from its bits, as float32."""
    return torch.from_numpy(bits.astype(np.int16)).view(torch.bfloat16).float()
