"""Plain decoding through the whole cluster, beside other engines on the same machine with the same threads.

One session: paired with Hugging Face ``generate`` prompt by prompt; the bar is 1.6 times its tokens per second.
16 sessions: paired with Hugging Face's batched ``generate`` (left-padded) repeat by repeat; the bar is 2 times.
Beside them, without a bar: Hugging Face's continuous batching, and llama.cpp where it can be imported (with
``--gguf FILE``, whatever its quantisation). Greedy, bfloat16, every answer of the same length.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence

from paceline.runtime.cluster import LocalCluster
from paceline.runtime.cluster_spec import ClusterSpec
from paceline_client import AsyncClient, Speculation

from bench import stats
from bench.arguments import COMPUTE_PROMPTS, mixed, parser
from bench.in_process import InProcess
from bench.progress import progress

OFF = Speculation(mode="off")
SESSIONS = 16
ALONE_BAR, TOGETHER_BAR = 1.6, 2.0
CONTINUOUS_LIMIT_S = 120.0
Prompt = Sequence[int]


async def ours(client: AsyncClient, prompts: Sequence[Prompt], tokens: int) -> float:
    """Tokens per second of answers to all prompts at once."""
    started = time.perf_counter()
    answers = [
        client.generate(prompt, temperature=0.0, max_tokens=tokens, ignore_eos=True, speculation=OFF)
        for prompt in prompts
    ]
    done = await asyncio.gather(*answers)
    return sum(out.usage.completion_tokens for out in done) / (time.perf_counter() - started)


async def alone(client: AsyncClient, rivals: InProcess, prompts: Sequence[Prompt], tokens: int) -> stats.Interval:
    """One session at a time."""
    speeds, theirs = [], []
    with progress("one session", len(prompts)) as done:
        for prompt in prompts:
            speeds.append(await ours(client, [prompt], tokens))
            theirs.append(await rivals.batched([prompt], tokens))
            done()
    print(f"1 session: ours {stats.spread(speeds)}, Hugging Face generate {stats.spread(theirs)} tokens/s", flush=True)
    return stats.ratio(speeds, theirs)


async def together(
    client: AsyncClient, rivals: InProcess, prompts: Sequence[Prompt], arguments: Namespace
) -> stats.Interval:
    """16 sessions at once."""
    speeds, theirs = [], []
    with progress(f"{SESSIONS} sessions", arguments.repeats) as done:
        for _ in range(arguments.repeats):
            speeds.append(await ours(client, prompts, arguments.tokens))
            theirs.append(await rivals.batched(prompts, arguments.tokens))
            done()
    names = f"ours {stats.spread(speeds)}, Hugging Face batched generate {stats.spread(theirs)}"
    print(f"{SESSIONS} sessions: {names} tokens/s", flush=True)
    return stats.ratio(speeds, theirs)


def continuous(prompts: Sequence[Prompt], arguments: Namespace) -> str:
    """What Hugging Face's continuous batching does with the same 16 prompts."""
    asked = {
        "model": arguments.model,
        "threads": arguments.threads,
        "prompts": [list(prompt) for prompt in prompts],
        "tokens": arguments.tokens,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.hf_continuous"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=CONTINUOUS_LIMIT_S,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {CONTINUOUS_LIMIT_S:.0f} s"
    except subprocess.CalledProcessError as error:
        return f"failed: {error.stderr.strip().splitlines()[-1:]}"
    told = json.loads(done.stdout.splitlines()[-1])
    return f"{told['tokens'] / told['seconds']:.3g} tokens/s"


def llama(gguf: str | None, prompts: Sequence[Prompt], arguments: Namespace) -> str:
    """What llama.cpp does, one session."""
    if importlib.util.find_spec("llama_cpp") is None:
        return "not installed here"
    if gguf is None:
        return "installed; name a model with --gguf"
    import llama_cpp  # type: ignore[import-not-found]  # noqa: PLC0415 - optional

    model = llama_cpp.Llama(gguf, n_threads=arguments.threads, n_ctx=2048, verbose=False)
    started, count = time.perf_counter(), 0
    for prompt in prompts[: stats.MIN_REPEATS]:
        for _, _ in zip(range(arguments.tokens), model.generate(list(prompt), temp=0.0), strict=False):
            count += 1
    return f"{count / (time.perf_counter() - started):.3g} tokens/s"


async def measure(arguments: Namespace) -> bool:
    rivals = await InProcess.load(arguments.model, arguments.threads)
    spec = ClusterSpec(
        model=arguments.model, drafter_checkpoint="none", threads=arguments.threads, settings=(COMPUTE_PROMPTS,)
    )
    async with LocalCluster(spec) as cluster, AsyncClient(cluster.grpc_address) as client:
        prompts = []
        for text in mixed(max(SESSIONS, arguments.prompts)):
            out = await client.generate(messages=[{"role": "user", "content": text}], max_tokens=1, speculation=OFF)
            prompts.append(out.started.prompt_token_ids)
        await rivals.batched(prompts[:1], 4)
        one = await alone(client, rivals, prompts[: arguments.prompts], arguments.tokens)
        many = await together(client, rivals, prompts[:SESSIONS], arguments)
    print(f"Hugging Face continuous batching, {SESSIONS} sessions: {continuous(prompts[:SESSIONS], arguments)}")
    print(f"llama.cpp, 1 session: {llama(arguments.gguf, prompts, arguments)}")
    met = stats.at_least("1 session, over Hugging Face generate", one, ALONE_BAR)
    return stats.at_least(f"{SESSIONS} sessions, over Hugging Face batched generate", many, TOGETHER_BAR) and met


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--prompts", type=int, default=12, help="prompts, one session (default: 12)")
    options.add_argument("--tokens", type=int, default=64, help="tokens per answer (default: 64)")
    options.add_argument("--repeats", type=int, default=5, help="of 16 sessions (default: 5)")
    options.add_argument("--gguf", metavar="FILE", help="model for llama.cpp")
    arguments = options.parse_args()
    return 0 if asyncio.run(measure(arguments)) or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
