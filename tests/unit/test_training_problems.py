"""Problems given by docstring: their examples are true, and a prompt never shows the solution."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Callable
from random import Random

import pytest
from paceline.training.prompts import pipelines, prompts
from paceline.training.prompts.docstrings import written_problems
from paceline.training.prompts.mixing import text
from paceline.training.prompts.problems import Problem


def test_examples_of_written_problems_are_true() -> None:
    solved: dict[str, object] = {}
    exec(compile(text("functions.txt"), "functions.txt", "exec"), solved)
    runner = doctest.DocTestRunner(verbose=False)
    problems = written_problems()
    assert len(problems) >= 160
    assert len({each.name for each in problems}) == len(problems)
    for each in problems:
        source = "".join(f">>> {call}\n{result}\n" for call, result in each.examples)
        runner.run(doctest.DocTestParser().get_doctest(source, solved, each.name, None, 0), clear_globs=False)
        assert len(each.examples) >= 2
    assert runner.summarize(verbose=False).failed == 0


MEANT: dict[str, Callable[[list[int]], object]] = {
    "sum_of_squared_even_numbers": lambda v: sum(x * x for x in v if x % 2 == 0),
    "sum_of_odd_numbers": lambda v: sum(x for x in v if x % 2),
    "sum_of_positive_numbers": lambda v: sum(x for x in v if x > 0),
    "largest_two_digit_numbers": lambda v: max((x for x in v if 9 < abs(x) < 100), default=0),
    "sorted_negated_even_numbers": lambda v: sorted(-x for x in v if x % 2 == 0),
    "sorted_odd_numbers": lambda v: sorted(x for x in v if x % 2),
    "descending_large_numbers": lambda v: sorted((x for x in v if x > 20), reverse=True),
    "backwards_multiple_of_five_numbers": lambda v: [x for x in reversed(v) if x % 5 == 0],
    "distinct_last_digit_even_numbers": lambda v: len({abs(x) % 10 for x in v if x % 2 == 0}),
    "first_three_positive_numbers": lambda v: [x for x in v if x > 0][:3],
}


def test_a_pipeline_does_what_its_words_say() -> None:
    rng, checked = Random(0), 0
    for each in (pipelines.problem(rng) for _ in range(10_000)):
        if each.name in MEANT and each.parameters[0][1] == "list[int]":
            for call, result in each.examples:
                values = ast.literal_eval(call.removeprefix(each.name))
                assert ast.literal_eval(result) == MEANT[each.name](values)
                checked += 1
    assert checked >= 10


@pytest.mark.parametrize("seed", range(300))
def test_a_pipeline_is_a_well_formed_problem(seed: int) -> None:
    made = pipelines.problem(Random(seed))
    assert isinstance(made, Problem)
    assert made.name.isidentifier()
    assert 2 <= len(made.examples) <= 3
    assert not re.search(r"[{}]|, ,|  |\.\.", made.text)
    for call, result in made.examples:
        ast.parse(call)
        assert result != "None"


def test_a_prompt_ends_where_the_body_would_begin() -> None:
    for each in prompts("code-docstring", 400, 0):
        code = each["turns"][0].split("```")[1].removeprefix("python\n")
        module = ast.parse(code)
        (function,) = (node for node in module.body if isinstance(node, ast.FunctionDef))
        assert len(function.body) == 1
        assert ast.get_docstring(function)
