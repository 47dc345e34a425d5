"""A token's logits have the same bits whatever runs beside it and however its session was cut into steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from paceline.engine.interface import Scores
from paceline.engine.torch_engine import TorchEngine
from paceline.speculation.scoring import score
from torch import Tensor

from tests.congruence.engine_tiny import configs, piece, plan, tiny_engine, tokens_of

LENGTH = 290  # three KV blocks of 128
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOKENS = tokens_of(1, LENGTH)


KERNELS = ("native", "torch")
ENGINES = [f"{arch}-{dtype}-{by}" for arch in configs() for dtype in DTYPES for by in KERNELS]


ENGINES += ["llama-bfloat16-mixed", "qwen3-bfloat16-mixed"]
ENGINES += ["llama-bfloat16-native-int8", "qwen3-bfloat16-native-int4", "odd-bfloat16-mixed-int4"]
ENGINES += ["llama-bfloat16-native-int4", "gpt2-bfloat16-torch-int8", "llama-float32-native-int4"]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> TorchEngine:
    arch, dtype, by, weights = (request.param + "-").split("-")[:4]
    return tiny_engine(configs()[arch], DTYPES[dtype], native=by != "torch", multiplies=by != "mixed", weights=weights)


@pytest.fixture(scope="module")
def reference(engine: TorchEngine) -> Tensor:
    """Logits after each of TOKENS, as one chunk of an engine with nothing else to do: [LENGTH, vocab]."""
    assert engine.reserve("reference", LENGTH)
    logits = engine.forward(plan(piece("reference", 0, TOKENS)))
    engine.free("reference")
    return logits


@pytest.fixture
def session(engine: TorchEngine) -> str:
    engine.free("session")
    assert engine.reserve("session", LENGTH + 16)
    return "session"


def prefill(engine: TorchEngine, session_id: str, length: int, tokens: tuple[int, ...] = TOKENS) -> None:
    assert engine.forward(plan(piece(session_id, 0, tokens[:length], 0))).shape[0] == 0


def test_one_token_at_a_time(engine: TorchEngine, reference: Tensor, session: str) -> None:
    for begin, end in ((0, 20), (120, 136), (250, 262)):
        if begin:
            prefill(engine, session, begin)
        rows = [engine.forward(plan(piece(session, at, TOKENS[at : at + 1]))) for at in range(begin, end)]
        assert torch.equal(torch.cat(rows), reference[begin:end])


@pytest.mark.parametrize("sizes", [(1, 16, 15, 17, 241), (7, 100, 3, 128, 52), (289, 1), (33,) * 8 + (26,)])
def test_any_chunking_of_a_prompt(engine: TorchEngine, reference: Tensor, session: str, sizes: tuple[int, ...]) -> None:
    assert sum(sizes) == LENGTH
    rows, start = [], 0
    for size in sizes:
        rows.append(engine.forward(plan(piece(session, start, TOKENS[start : start + size]))))
        start += size
    assert torch.equal(torch.cat(rows), reference)


def test_verifying_drafts_of_every_length_and_rolling_back(
    engine: TorchEngine, reference: Tensor, session: str
) -> None:
    start = 118
    prefill(engine, session, start)
    for length in range(1, 20):  # the right token, then wrong drafts that the next plan rolls back
        drafts = TOKENS[start : start + 1] + tokens_of(length, length)
        logits = engine.forward(plan(piece(session, start, drafts)))
        assert torch.equal(logits[0], reference[start]), length
        start += 1


@pytest.mark.parametrize("count", [2, 3, 5, 9, 16, 20])
def test_among_other_sessions(engine: TorchEngine, reference: Tensor, session: str, count: int) -> None:
    start = 130
    prefill(engine, session, start)
    others = [f"other{i}" for i in range(count - 1)]
    slices = []
    for number, other in enumerate(others):
        history = (37 * number) % 700 + 1
        tokens = tokens_of(100 + number, history)
        assert engine.reserve(other, history + 24)
        prefill(engine, other, history, tokens)
        slices.append(piece(other, history, tokens_of(number, 1 + 5 * number % 23)))
    for at in {0, count // 2, count - 1}:
        mine = piece(session, start, TOKENS[start : start + 5])
        before = sum(len(other.tokens) for other in slices[:at])
        logits = engine.forward(plan(*slices[:at], mine, *slices[at:]))
        assert torch.equal(logits[before : before + 5], reference[start : start + 5]), at
    for other in others:
        engine.free(other)


def test_reused_pages_leave_no_trace(engine: TorchEngine, reference: Tensor) -> None:
    engine.free("session")
    assert engine.reserve("poison", 1000)
    holding = engine._table.holding("poison")  # what a model that overflowed would leave behind
    for tensor in (*engine._store.keys, *engine._store.values):
        tensor.view(-1, 16 * tensor.shape[1])[holding.pages] = torch.nan
    engine.free("poison")
    assert engine.reserve("session", LENGTH)
    assert torch.equal(engine.forward(plan(piece("session", 0, TOKENS))), reference)
    engine.free("session")
    engine.check_integrity()


def test_memory_budget_of_attention_changes_nothing(engine: TorchEngine, reference: Tensor, session: str) -> None:
    layout = engine._layout
    engine._layout = replace(layout, max_blocks=4)
    try:
        assert torch.equal(engine.forward(plan(piece(session, 0, TOKENS))), reference)
    finally:
        engine._layout = layout


@pytest.mark.parametrize("native", [True, False])
def test_contexts_up_to_700(native: bool) -> None:
    engine = tiny_engine(configs()["llama"], torch.bfloat16, native=native)
    tokens = tokens_of(2, 700)
    for session_id in ("whole", "pieces"):
        assert engine.reserve(session_id, 700)
    whole = engine.forward(plan(piece("whole", 0, tokens)))
    prefill(engine, "pieces", 380, tokens)
    for at in (*range(380, 390), *range(508, 516), *range(636, 644)):
        chunk = tokens[engine._table.holding("pieces").length : at]
        if chunk:
            engine.forward(plan(piece("pieces", at - len(chunk), chunk, 0)))
        assert torch.equal(engine.forward(plan(piece("pieces", at, tokens[at : at + 1])))[0], whole[at]), at


def test_scored_rows_beside_sampled_ones(engine: TorchEngine, reference: Tensor, session: str) -> None:
    """A prompt's log probabilities are of the same bits, whichever rows of a step they are."""
    chunk = replace(piece(session, 0, TOKENS[:20], 0), scored=TOKENS[1:21])
    assert torch.equal(engine.forward(plan(chunk)), reference[:20])
    last = replace(piece(session, 20, TOKENS[20:30], 3), scored=TOKENS[21:26], logprobs=2)
    engine.free("beside")
    assert engine.reserve("beside", 16)
    logits = engine.forward(plan(piece("beside", 0, TOKENS[:2]), last))
    assert torch.equal(logits, torch.cat((reference[:2], reference[20:25], reference[27:30])))
    assert engine.reserve("beside", 16)
    beside, mine = engine.step(plan(piece("beside", 0, TOKENS[:2]), last)).scores
    assert beside == Scores()
    assert mine.prompt == tuple(score(reference[20 + i], TOKENS[21 + i], 0) for i in range(5))
    drawn = reference[27:30].argmax(dim=1).tolist()
    assert mine.samples == tuple(score(reference[27 + i], token, 2) for i, token in enumerate(drawn))
