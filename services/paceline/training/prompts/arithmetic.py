"""The arithmetic of prompt templates: formulas over whole numbers, read by a small interpreter (never `eval`)."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from math import gcd, isqrt

Value = int | bool

_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARE: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"gcd": gcd, "isqrt": isqrt, "min": min, "max": max}


def evaluate(formula: str, numbers: Mapping[str, Value]) -> Value:
    """The value of a formula (`a*b//2 + gcd(a, b)`, `a % b == 0 and a > b`) over whole numbers.

    ValueError on anything else than whole numbers, names of `numbers`, `+ - * // % **`, comparisons, `and`/`or`/`not`,
    and the functions gcd, isqrt, min and max.
    """
    return _value(ast.parse(formula.strip(), mode="eval").body, numbers)


def _value(node: ast.expr, numbers: Mapping[str, Value]) -> Value:
    match node:
        case ast.Constant(value=int() as value):
            return value
        case ast.Name(id=name) if name in numbers:
            return numbers[name]
        case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(arg, numbers) for arg in args))
        case ast.Compare():
            return _compare(node, numbers)
    return _operation(node, numbers)


def _operation(node: ast.expr, numbers: Mapping[str, Value]) -> Value:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, numbers)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, numbers)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left, numbers), _value(right, numbers))
        case ast.BoolOp(op=op, values=values):
            return (all if isinstance(op, ast.And) else any)(_value(part, numbers) for part in values)
    raise ValueError(f"not a formula over whole numbers: {ast.unparse(node)!r}")


def _compare(node: ast.Compare, numbers: Mapping[str, Value]) -> bool:
    values = [_value(part, numbers) for part in (node.left, *node.comparators)]
    pairs = zip(node.ops, values, values[1:], strict=False)
    return all(_COMPARE[type(op)](left, right) for op, left, right in pairs)
