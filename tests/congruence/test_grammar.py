"""Speculation changes no token under a grammar: verifier and drafters against plain decoding of the same model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from paceline.drafters.interface import Ask, Drafter, DraftSession
from paceline.drafters.model import ModelDrafter
from paceline.drafters.ngram import NgramDrafter
from paceline.engine.fake import FakeEngine, FakeOptions, fake_tokenizer_files
from paceline.engine.fake_tokenizer import VOCAB_SIZE
from paceline.engine.grammar import Grammars, Limits, grammars_of
from paceline.engine.tokenizer_files import TOKENIZER
from paceline.speculation.digest import PrefixDigest
from paceline.speculation.messages import (
    Fence,
    Finish,
    FinishReason,
    Proposal,
    SessionOpen,
    Verdict,
    VerifyTask,
)
from paceline.speculation.params import Grammar, GrammarKind, SamplingParams, VerificationMode
from paceline.speculation.sampling import Row, sample

from tests.congruence.answer_kit import Run
from tests.unit.draft_kit import RecordingEngine

TABLE = FakeOptions(seed=4, order=2, spread=2.0, eos=0.2)
EOS = TABLE.eos_token_id
PROMPT = tuple(b'say it as {"rider": "ada", "places": [1, 2, 3]}, say it again: ')
LENGTH = 60
DRAFTERS = ("off", "ngram", "model", "free model")

SCHEMA = {
    "type": "object",
    "properties": {
        "rider": {"enum": ["ada", "adam", "grace"]},
        "places": {"type": "array", "items": {"type": "integer", "maximum": 9999, "minimum": 0}, "maxItems": 3},
        "note": {"type": "string", "maxLength": 12},
    },
    "required": ["rider", "places"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
LARK = """
start: sentence (" " sentence)*
sentence: who " " does ("." | "!")
who: "the rider" | "the runner" | "a" /[a-z]{1,4}/
does: "rides" | "runs" | "rests at " NUMBER
NUMBER: /[0-9]{1,2}/
"""
GRAMMARS = {
    "schema": Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)),
    "regex": Grammar(GrammarKind.REGEX, r"([a-z]{3,8}, ){2,6}[a-z]{3,8}( and so on)?\."),
    "lark": Grammar(GrammarKind.LARK, LARK),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.9, "seed": 5},
    "cut": {"temperature": 1.2, "top_k": 5, "top_p": 0.9, "seed": 6, "repetition_penalty": 1.2},
    "min_tokens": {"temperature": 1.0, "min_tokens": 25, "seed": 7},
    "stop": {"temperature": 1.0, "stop": ("e ", "ri", '", "'), "seed": 8},
    "short": {"temperature": 1.0, "max_tokens": 9},
}


@cache
def grammars() -> Grammars:
    return grammars_of(fake_tokenizer_files(), eos=[EOS], vocab_size=TABLE.vocab_size)


def sampling_of(grammar: str, options: str) -> SamplingParams:
    chosen: dict[str, Any] = {"max_tokens": LENGTH, "grammar": GRAMMARS[grammar]}
    return SamplingParams(**(chosen | OPTIONS[options]))


@cache
def plain(grammar: str, options: str) -> tuple[tuple[int, ...], bool]:
    """The model alone, with the mask of a state made anew for every token; and whether nothing more was possible."""
    params, engine, output = sampling_of(grammar, options), FakeEngine(TABLE, sleep=None), list[int]()
    assert params.grammar is not None
    while len(output) < params.max_tokens:
        mask = grammars().state(params.grammar, output).allowed(())
        assert mask is not None
        logits = engine.next_logits([*PROMPT, *output]).masked_fill(~mask, -torch.inf)
        if len(output) < params.min_tokens:
            logits[EOS] = -torch.inf
        if not logits.isfinite().any():
            return tuple(output), True
        if params.repetition_penalty != 1:
            seen = list({*PROMPT, *output})
            picked = logits[seen]
            penalty = params.repetition_penalty
            logits[seen] = torch.where(picked > 0, picked / penalty, picked * penalty)
        output.append(int(sample(logits[None], [Row(params, len(output))])[0]))
        text = bytes(output[:-1] if output[-1] == EOS else output).decode(errors="replace")
        if output[-1] == EOS or any(stop in text for stop in params.stop):
            break
    return tuple(output), False


def run_of(params: SamplingParams, drafter: Drafter | None, k: int, **options: Any) -> Run:
    """An answer under a grammar."""
    opening = SessionOpen("s", 1, "r", PROMPT, len(PROMPT), params)
    return Run(TABLE, opening, drafter, k, grammars=grammars(), **options)


def drafter_of(name: str) -> Drafter | None:
    """``free model`` knows nothing of grammars, so some of what it drafts is cut."""
    guess = replace(TABLE, quality=0.7)
    make: dict[str, Callable[[], Drafter | None]] = {
        "off": lambda: None,
        "ngram": lambda: NgramDrafter(1, 3),
        "model": lambda: ModelDrafter(FakeEngine(guess, sleep=None), grammars=grammars()),
        "free model": lambda: ModelDrafter(FakeEngine(guess, sleep=None)),
    }
    return make[name]()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("grammar", GRAMMARS)
def test_no_drafter_and_no_k_changes_a_token(grammar: str, options: str) -> None:
    expected, dead_end = plain(grammar, options)
    for drafter in DRAFTERS:
        for k in (1, 4, 8) if drafter != "off" else (0,):
            run = run_of(sampling_of(grammar, options), drafter_of(drafter), k, step_tokens=5 if k == 8 else 64)
            assert run.all() == expected, (drafter, k)
            assert run.dead_end == dead_end, (drafter, k)


@pytest.mark.parametrize("drafter", ["off", "ngram", "model"])
@pytest.mark.parametrize("grammar", GRAMMARS)
def test_no_move_changes_a_token(grammar: str, drafter: str) -> None:
    expected, _ = plain(grammar, "sampled")
    for move_after in range(1, len(expected), 9):
        run = run_of(sampling_of(grammar, "sampled"), drafter_of(drafter), 4)
        assert run.all(move_after=move_after) == expected, move_after


@pytest.mark.parametrize("options", ["greedy", "sampled", "cut"])
def test_answers_are_what_their_grammar_says(options: str) -> None:
    tokens, _ = plain("schema", options)
    value = json.loads(bytes(tokens[:-1]))
    assert tokens[-1] == EOS
    assert set(value) <= {"rider", "places", "note"}
    assert value["rider"] in ("ada", "adam", "grace")
    tokens, _ = plain("regex", options)
    assert re.fullmatch(GRAMMARS["regex"].source, bytes(tokens[:-1]).decode())


@pytest.mark.parametrize("drafter", ["ngram", "model", "free model"])
def test_rejected_in_place_answers_are_what_their_grammar_says(drafter: str) -> None:
    """Rejection mode: nothing is cut, and forbidden drafts lose to what the grammar leaves."""
    accepted = 0
    for seed in range(8):
        params = replace(sampling_of("regex", "sampled"), seed=seed, verification_mode=VerificationMode.REJECTION)
        run = run_of(params, drafter_of(drafter), 4)
        tokens = run.all()
        assert tokens[-1] == EOS
        assert re.fullmatch(GRAMMARS["regex"].source, bytes(tokens[:-1]).decode())
        accepted += run.accepted
    assert accepted > 0


def test_a_limit_inside_the_grammar_ends_the_answer_there() -> None:
    run = run_of(sampling_of("schema", "short"), drafter_of("model"), 8)
    assert len(run.all()) == 9
    assert run.finish == Finish(FinishReason.LENGTH)
    full, _ = plain("schema", "sampled")
    assert grammars().state(GRAMMARS["schema"], run.output).fitting(full[9:]) <= len(full) - 9


def test_min_tokens_beyond_what_the_grammar_has_is_a_dead_end() -> None:
    params = SamplingParams(max_tokens=20, min_tokens=10, grammar=Grammar(GrammarKind.REGEX, "abc"))
    run = run_of(params, drafter_of("model"), 4)
    assert run.all() == tuple(b"abc")
    assert run.dead_end


def test_a_drafter_that_knows_the_grammar_is_right_more_often_and_nothing_forbidden_is_verified() -> None:
    rates = {}
    for name in ("model", "free model"):
        runs = [run_of(replace(sampling_of("schema", "sampled"), seed=seed), drafter_of(name), 4) for seed in range(6)]
        for run in runs:
            run.all()
        rates[name] = sum(run.accepted - run.forced for run in runs) / sum(run.rounds for run in runs)
    assert rates["model"] > 1.5 * rates["free model"], rates


def test_what_a_grammar_forces_is_drafted_without_asking_the_model() -> None:
    engine = RecordingEngine(TABLE)
    drafter = ModelDrafter(engine, grammars=grammars())
    params = SamplingParams(grammar=Grammar(GrammarKind.REGEX, "place: (first|second) of all"), temperature=0)
    drafter.open(DraftSession.opened(SessionOpen("s", 1, "r", PROMPT, len(PROMPT), params), ""))
    (proposal,) = drafter.propose([Ask("s", len(PROMPT), 16)])
    assert re.fullmatch("place: (first of |second of)", bytes(proposal.tokens).decode())
    assert len(engine.plans) == 1, "one choice was the model's"
    run = run_of(params, drafter_of("model"), 20)
    run.all()
    assert run.accepted >= len(run.output) - run.rounds


@pytest.mark.parametrize("mode", VerificationMode)
def test_a_verifier_that_gets_no_drafts_verifies_what_the_grammar_forces(mode: VerificationMode) -> None:
    """In fewer rounds than tokens, saying who drafted them; a drafter's own drafts are verified instead."""
    regex = Grammar(GrammarKind.REGEX, "place: (first|second) of all the riders")
    params = SamplingParams(max_tokens=LENGTH, grammar=regex, temperature=1, seed=3, verification_mode=mode)
    run = run_of(params, None, 0)
    text = bytes(run.all()[:-1]).decode()
    assert re.fullmatch(regex.source, text)
    assert run.rounds <= 5
    assert run.accepted == run.forced >= len(text) - run.rounds
    if mode is VerificationMode.AGREEMENT:
        drafted = run_of(params, drafter_of("model"), 4)
        assert bytes(drafted.all()[:-1]).decode() == text
        assert drafted.forced < drafted.accepted


@pytest.mark.parametrize("mode", VerificationMode)
def test_a_grammar_that_grows_too_dear_ends_the_answer_at_the_same_token_whatever_is_drafted(
    mode: VerificationMode,
) -> None:
    limited = Grammars(fake_tokenizer_files()[TOKENIZER], eos=[EOS], vocab_size=VOCAB_SIZE, limits=Limits(items=60))
    ambiguous = Grammar(GrammarKind.LARK, 'start: e\ne: e e | e e e | "a" | "b"')
    params = SamplingParams(
        max_tokens=LENGTH, min_tokens=LENGTH, grammar=ambiguous, temperature=0.0, verification_mode=mode
    )
    outputs = []
    for drafter in DRAFTERS:
        opening = SessionOpen("s", 1, "r", PROMPT, len(PROMPT), params)
        run = Run(TABLE, opening, drafter_of(drafter), 4, grammars=limited)
        outputs.append(run.all())
        assert run.dead_end, drafter
    assert 3 < len(outputs[0]) < LENGTH
    assert set(outputs) == {outputs[0]}


def test_drafts_that_break_the_grammar_are_cut_before_they_are_verified() -> None:
    run = run_of(SamplingParams(max_tokens=9, grammar=Grammar(GrammarKind.REGEX, "abc+d")), None, 0, step_tokens=256)
    fence = Fence("s", "i", run.opening.lease_epoch, 1, len(PROMPT), PrefixDigest(PROMPT).value)
    run.verifier.submit("r", VerifyTask(fence, Proposal(tuple(b"abxcd"))), 0.0)
    plan = run.verifier.plan(0.0)
    assert plan is not None
    assert plan.slices[0].tokens[-2:] == tuple(b"ab")
    outcome = run.verifier.complete(plan, run.engine.step(plan), 0.0)[0].result
    assert outcome is not None
    assert isinstance(outcome.outcome, Verdict)
    assert (outcome.outcome.tokens, outcome.outcome.verify_len) == (tuple(b"abc"), 2)
