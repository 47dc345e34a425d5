"""Sampling options from either client through router and workers to the tokens, against the model decoded by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest
import pytest_asyncio
import torch
from paceline.engine.fake import FakeEngine
from paceline.speculation.params import SamplingParams
from paceline.speculation.sampling import Row, sample
from paceline_client import AsyncClient, InvalidRequestError, Speculation

from tests.congruence.answer_kit import CODEC
from tests.congruence.small_cluster import small_cluster
from tests.congruence.test_options import EOS, OPTIONS, PROMPT, TABLE
from tests.unit.shaping_reference import shaped_slowly

NAME = f"fake:seed={TABLE.seed},order={TABLE.order},spread={TABLE.spread},eos={TABLE.eos}"
SEED = 11
Clients = tuple[httpx.AsyncClient, AsyncClient]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[Clients]:
    async with small_cluster(NAME, f"{NAME},quality=0.85") as clients:
        yield clients


pytestmark = pytest.mark.asyncio(loop_scope="module")


def alone(options: dict[str, Any], choice: int = 0) -> list[int]:
    """The model by itself."""
    params = SamplingParams(**({"max_tokens": 30, "seed": SEED, "temperature": 0.8} | options))
    engine, output = FakeEngine(TABLE, sleep=None), list[int]()
    while len(output) < params.max_tokens and not (output and output[-1] in {EOS, *params.stop_token_ids}):
        logits = engine.next_logits([*PROMPT, *output])
        shaped = torch.from_numpy(shaped_slowly(logits.tolist(), params, PROMPT, output, eos=EOS))
        output.append(int(sample(shaped[None], [Row(params, len(output), choice)])[0]))
    return output


def text_of(tokens: Sequence[int]) -> str:
    return CODEC.decode([token for token in tokens if token != EOS])


def raw(tokens: Sequence[int], place: int, count: int) -> tuple[float, list[int]]:
    """The log probability of a token of a text, and the likeliest ones there."""
    logprobs = torch.log_softmax(FakeEngine(TABLE, sleep=None).next_logits(list(tokens[:place])).double(), 0)
    order = sorted(range(len(logprobs)), key=lambda token: (-float(logprobs[token]), token))
    return float(logprobs[tokens[place]]), order[:count]


@pytest.mark.parametrize("name", OPTIONS)
async def test_the_sdks_options_mean_what_they_say(cluster: Clients, name: str) -> None:
    _, client = cluster
    options = dict(OPTIONS[name])
    given = {**options, "logit_bias": dict(options["logit_bias"])} if "logit_bias" in options else options
    speculation = Speculation("fixed", 4)
    answer = await client.generate(
        PROMPT, seed=SEED, temperature=0.8, max_tokens=30, speculation=speculation, choice=3, **given
    )
    assert list(answer.token_ids) == alone(options, choice=3)
    assert answer.speculation.accepted_tokens > 0


async def test_the_sdks_log_probabilities(cluster: Clients) -> None:
    _, client = cluster
    answer = await client.generate(PROMPT, seed=SEED, temperature=0.8, max_tokens=12, logprobs=2, prompt_logprobs=1)
    tokens = (*PROMPT, *answer.token_ids)
    assert len(answer.prompt_logprobs) == len(PROMPT) - 1
    for place in range(1, len(tokens)):
        output = place >= len(PROMPT)
        told = answer.tokens[place - len(PROMPT)].logprobs if output else answer.prompt_logprobs[place - 1]
        assert told is not None
        mine, top = raw(tokens, place, 2 if output else 1)
        assert told.logprob == pytest.approx(mine, abs=1e-5)
        assert list(told.top_ids) == top


async def completion(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    usual = {"prompt": list(PROMPT), "seed": SEED, "temperature": 0.8, "max_tokens": 30}
    answer = await http.post("/v1/completions", json=usual | body)
    assert answer.status_code == 200, answer.text
    body_: dict[str, Any] = answer.json()
    return body_


async def test_http_options_mean_what_they_say(cluster: Clients) -> None:
    http, _ = cluster
    shaping = {"repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.2, "min_tokens": 15}
    answer = await completion(http, **shaping, logit_bias={str(ord("z")): 2.5})
    assert answer["choices"][0]["text"] == text_of(alone(shaping | {"logit_bias": ((ord("z"), 2.5),)}))


async def test_bad_words_are_words(cluster: Clients) -> None:
    """The fake tokenizer writes a byte a token, so that a word is its bytes, with and without a space before them."""
    http, _ = cluster
    free = text_of(alone({}))
    word = free[2:4]
    assert " " not in word
    answer = await completion(http, bad_words=[word])
    expected = alone({"bad_words": (tuple(word.encode()), tuple(b" " + word.encode()))})
    assert answer["choices"][0]["text"] == text_of(expected)
    assert word in free
    assert word not in answer["choices"][0]["text"]


async def test_choices_share_a_seed_and_differ(cluster: Clients) -> None:
    http, _ = cluster
    answer = await completion(http, n=4)
    texts = [choice["text"] for choice in answer["choices"]]
    outputs = [alone({}, choice=choice) for choice in range(4)]
    assert texts == [text_of(output) for output in outputs]
    assert len(set(texts)) == 4
    assert answer["usage"]["completion_tokens"] == sum(map(len, outputs))
    assert answer["usage"]["prompt_tokens"] == len(PROMPT)


async def test_http_log_probabilities_have_the_tokens_texts(cluster: Clients) -> None:
    http, _ = cluster
    answer = await completion(http, logprobs=1, prompt_logprobs=0)
    output = alone({})
    logprobs = answer["choices"][0]["logprobs"]
    names = [CODEC.token_text(token) for token in output]
    assert logprobs["tokens"] == names
    assert "".join(names).startswith(answer["choices"][0]["text"])
    tokens = [*PROMPT, *output]
    assert logprobs["token_logprobs"] == pytest.approx(
        [raw(tokens, place, 0)[0] for place in range(len(PROMPT), len(tokens))], abs=1e-5
    )
    prompt = answer["choices"][0]["prompt_logprobs"]
    assert prompt[0] is None
    assert [next(iter(each)) for each in prompt[1:]] == [str(token) for token in PROMPT[1:]]
    told = [each[str(token)] for each, token in zip(prompt[1:], PROMPT[1:], strict=True)]
    assert [each["decoded_token"] for each in told] == [chr(token) for token in PROMPT[1:]]
    expected = [max(raw(PROMPT, place, 0)[0], -9999.0) for place in range(1, len(PROMPT))]
    assert [each["logprob"] for each in told] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"logit_bias": {TABLE.vocab_size: 1.0}}, "logit_bias"),
        ({"bad_words": [[TABLE.vocab_size]]}, "bad_words"),
        ({"min_tokens": 17, "max_tokens": 16}, "min_tokens"),
        ({"prompt": [97] * 20_000, "prompt_logprobs": 20}, "prompt_logprobs"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(cluster: Clients, options: dict[str, Any], field: str) -> None:
    _, client = cluster
    prompt = options.pop("prompt", PROMPT)
    with pytest.raises(InvalidRequestError, match=f"^{field}: expected "):
        await client.generate(prompt, **options)


async def test_options_that_leave_no_token_end_the_answer_by_name(cluster: Clients) -> None:
    """Every byte but one is ruled out, and that one may not come twice."""
    _, client = cluster
    x = ord("x")
    others = [token for token in range(TABLE.vocab_size) if token != x]
    words = [*([token] for token in others[64:]), [x, x]]
    with pytest.raises(InvalidRequestError, match=r"sampling: expected options .* got 'none after 1 tokens'"):
        await client.generate(PROMPT, bad_words=words, stop_token_ids=others[:64], min_tokens=9, max_tokens=9)
