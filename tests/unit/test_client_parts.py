"""The parts of the client that need no server: arguments and exports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import paceline_client
import pytest
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.params import SamplingParams, SpeculationMode, SpeculationParams
from paceline.v1 import common_pb2
from paceline_client import InvalidRequestError, Speculation
from paceline_client._options import GenerateOptions, build_request, check_timeout, check_traceparent


def test_exports_are_the_public_names() -> None:
    public = sorted(name for name in vars(paceline_client) if not name.startswith("_"))
    assert sorted(paceline_client.__all__) == public


def test_importing_the_client_loads_no_service_and_no_torch() -> None:
    code = (
        "import sys, paceline_client; bad = {'torch', 'ray', 'redis', 'numpy', 'opentelemetry'} & set(sys.modules); "
        "ours = [m for m in sys.modules if m.startswith('paceline.') and not m.startswith('paceline.v1')]; "
        "sys.exit(str((bad, ours)) if bad or ours else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_twins_have_the_same_methods() -> None:
    def methods(name: str) -> list[str]:
        source = Path(paceline_client.__file__).parent.joinpath(name).read_text()
        classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
        found = [
            f"{each.name.removeprefix('Async')}.{node.name.replace('__a', '__')}"
            for each in classes
            for node in each.body
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_")
        ]
        return sorted(found)

    assert methods("_client.py") == methods("_async_client.py")


WRONG: list[tuple[str, Any]] = [
    ("temperature", -0.1),
    ("temperature", 101),
    ("temperature", float("nan")),
    ("temperature", True),
    ("temperature", "hot"),
    ("top_k", -1),
    ("top_k", 1.5),
    ("top_k", 2**31 + 1),
    ("top_p", 0),
    ("top_p", 1.01),
    ("min_p", -1),
    ("min_p", float("inf")),
    ("seed", -1),
    ("seed", 2**64),
    ("max_tokens", 0),
    ("max_tokens", True),
    ("stop", ("",)),
    ("stop", ("x" * 257,)),
    ("stop", ("x",) * 17),
    ("stop_token_ids", (-1,)),
    ("stop_token_ids", (2**32,)),
    ("stop_token_ids", (1,) * 65),
    ("repetition_penalty", 0),
    ("repetition_penalty", 10.1),
    ("presence_penalty", -2.1),
    ("frequency_penalty", float("nan")),
    ("relaxed_acceptance", 0),
    ("relaxed_acceptance", 1.5),
    ("logprobs", 21),
    ("prompt_logprobs", -1),
    ("bad_words", ((),)),
    ("bad_words", ((1,) * 33,)),
    ("bad_words", ((1,),) * 257),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_wrong_sampling_is_refused_in_the_words_of_the_server(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as servers:
        SamplingParams(**{field: value})
    with pytest.raises(InvalidRequestError) as ours:
        build_request("x", cast(GenerateOptions, {field: value}))
    assert str(ours.value) == str(servers.value)


def test_options_reach_the_wire_as_they_are() -> None:
    options: GenerateOptions = {
        "repetition_penalty": 1.25, "presence_penalty": -0.5, "frequency_penalty": 2, "logit_bias": {7: -100, 3: 0.5},
        "min_tokens": 4, "bad_words": [(1, 2), [3]], "logprobs": 0, "prompt_logprobs": 20, "choice": 127,
    }  # fmt: skip
    request = build_request("x", options)
    sampling = request.sampling
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.25, -0.5, 2)
    assert dict(sampling.logit_bias) == {7: -100, 3: 0.5}
    assert [list(word.ids) for word in sampling.bad_words] == [[1, 2], [3]]
    assert (sampling.min_tokens, sampling.logprobs, sampling.prompt_logprobs) == (4, 0, 20)
    assert sampling.HasField("logprobs")
    assert request.choice == 127
    lossy = build_request("x", {"verification_mode": "agreement", "relaxed_acceptance": 0.25}).sampling
    assert (lossy.verification_mode, lossy.relaxed_acceptance) == (common_pb2.VERIFICATION_MODE_AGREEMENT, 0.25)
    rejecting = build_request("x", {"verification_mode": "rejection"}).sampling
    assert rejecting.verification_mode == common_pb2.VERIFICATION_MODE_REJECTION
    empty = build_request("x", {"logprobs": None, "logit_bias": None, "bad_words": None})
    assert not empty.sampling.ListFields()


def test_a_grammar_reaches_the_wire() -> None:
    schema = {"type": "object", "properties": {"é": {}}}
    assert json.loads(build_request("x", {"json_schema": schema}).sampling.grammar.json_schema) == schema
    assert build_request("x", {"json_schema": "{}"}).sampling.grammar.json_schema == "{}"
    assert build_request("x", {"regex": "a+"}).sampling.grammar.regex == "a+"
    assert build_request("x", {"grammar": 'start: "a"', "regex": None}).sampling.grammar.lark == 'start: "a"'
    with pytest.raises(
        InvalidRequestError, match="at most one of json_schema, regex, grammar, got 'regex and grammar'"
    ):
        build_request("x", {"grammar": 'start: "a"', "regex": "a"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("regex", 5),
        ("regex", ""),
        ("grammar", "a" * 65537),
        ("json_schema", 5),
        ("json_schema", {"type": object()}),
        ("logit_bias", [1]),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: 101}),
        ("logit_bias", {1: "much"}),
        ("logit_bias", dict.fromkeys(range(1025), 1.0)),
        ("min_tokens", -1),
        ("verification_mode", "trust"),
        ("bad_words", ["word"]),
        ("bad_words", [[-1]]),
        ("choice", 128),
        ("choice", None),
    ],
)
def test_other_wrong_options_are_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{field}: expected "):
        build_request("x", cast(GenerateOptions, {field: value}))


@pytest.mark.parametrize(
    ("mode", "k", "drafter"), [("fixed", None, ""), ("auto", 65, ""), ("off", -1, ""), ("auto", None, "x" * 65)]
)
def test_wrong_speculation_is_refused_in_the_words_of_the_server(mode: Any, k: int | None, drafter: str) -> None:
    with pytest.raises(InvalidRequest) as servers:
        SpeculationParams(SpeculationMode(mode), k, drafter)
    with pytest.raises(InvalidRequestError) as ours:
        Speculation(mode, k, drafter)
    assert str(ours.value) == str(servers.value)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (None, {}, "prompt: expected either prompt or messages, got neither"),
        ("x", {"messages": [{"role": "user", "content": "x"}]}, "got both"),
        ([], {}, "prompt: expected at least one token id"),
        ([1, -1], {}, "prompt: expected token ids, got -1"),
        ([1.0], {}, r"prompt: expected token ids, got 1\.0"),
        ([True], {}, "prompt: expected token ids, got True"),
        (b"x", {}, "prompt: expected text or token ids, got 'bytes'; decode bytes first"),
        (None, {"messages": []}, "messages: expected at least one message"),
        (None, {"messages": ["x"]}, "messages: expected mappings with role and content, got 'x'"),
        (None, {"messages": [{"role": "user"}]}, "mappings with role and content"),
        (None, {"messages": [{"role": "user", "content": 3}]}, r"messages\.content: expected text, got 3"),
        ("x", {"model": None}, "model: expected text"),
        ("x", {"request_id": "a b"}, "request_id: expected at most 128 of A-Z a-z 0-9 . _ : -, got 'a b'"),
        ("x", {"stop": "word"}, r"stop: expected a list of strings, got 'word'; write \['word'\]"),
        ("x", {"ignore_eos": 1}, "ignore_eos: expected True or False"),
        ("x", {"speculation": "off"}, "speculation: expected a Speculation"),
    ],
)
def test_other_mistakes_are_named(prompt: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        build_request(prompt, options)


def test_speculation_modes_are_closed() -> None:
    with pytest.raises(InvalidRequestError, match=r"speculation\.mode: expected auto, off or fixed, got 'on'"):
        Speculation(cast(Any, "on"))


def test_integers_of_other_libraries_are_token_ids() -> None:
    class Id:
        def __index__(self) -> int:
            return 7

    assert list(build_request(cast(Any, [Id(), 8]), {}).tokens.ids) == [7, 8]


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "5", True])
def test_a_timeout_is_a_number_of_seconds(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="timeout: expected seconds above 0"):
        check_timeout(value)


def test_a_traceparent_is_passed_on_only_if_it_is_one() -> None:
    assert check_traceparent("") == ""
    with pytest.raises(InvalidRequestError, match="traceparent"):
        check_traceparent("00-ABC")


def test_errors_are_all_of_the_tree(names: Callable[[], list[str]]) -> None:
    tree = cast(str, sys.modules["paceline_client._errors"].__doc__)
    assert names()
    for name in names():
        assert issubclass(getattr(paceline_client, name), paceline_client.PacelineError)
        assert name in tree


@pytest.fixture
def names() -> Callable[[], list[str]]:
    """Every exported name that says it is an error."""
    return lambda: [name for name in paceline_client.__all__ if name.endswith("Error")]
