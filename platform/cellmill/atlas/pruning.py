"""Deciding a predicate for a whole shard by what the catalog knows of its columns."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import pyarrow as pa

from cellmill.atlas.predicate import Predicate, evaluate, kind
from cellmill.atlas.summary import EXACT, Facts

Outcomes = frozenset[bool | None]
"""What a predicate may be over the rows of a shard: true, false, or missing."""

_ANY: Outcomes = frozenset({True, False, None})
_LESS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def decide(predicate: Predicate, known: Mapping[str, Facts]) -> bool | None:
    """Return True if all rows fulfil the predicate, False if none does, None if their values have to be looked at."""
    try:
        found = _outcomes(predicate.tree, known, predicate.mixed)
    except (pa.ArrowException, TypeError, ValueError):
        # Values of different kinds: the rows themselves shall say so.
        return None
    if found == {True}:
        return True
    return None if True in found else False


def _outcomes(node: ast.expr, known: Mapping[str, Facts], mixed: Mapping[str, frozenset[str]]) -> Outcomes:
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            return _combined(values, known, mixed, _and)
        case ast.BoolOp(values=values):
            return _combined(values, known, mixed, _or)
        case ast.UnaryOp(operand=operand):
            return frozenset(None if one is None else not one for one in _outcomes(operand, known, mixed))
    operands = node.args if isinstance(node, ast.Call) else [node]
    columns = {item.id for part in operands for item in ast.walk(part) if isinstance(item, ast.Name)}
    found = {name: known[name] for name in columns if name in known}
    if len(found) < len(columns):
        return _ANY
    if any(isinstance(one.least, float) and (name in mixed or node is not operands[0]) for name, one in found.items()):
        # The text of a number of 32 bits is not that of the same number of 64.
        return _ANY
    if all(one.is_constant for one in found.values()):
        return _constant(node, found, mixed)
    match node:
        case ast.Compare(left=ast.Name(id=name), ops=[comparison], comparators=[right]):
            return _compared(found[name], comparison, right, is_mixed=name in mixed)
    return _ANY


def _combined(
    nodes: list[ast.expr],
    known: Mapping[str, Facts],
    mixed: Mapping[str, frozenset[str]],
    combine: Callable[[bool | None, bool | None], bool | None],
) -> Outcomes:
    found = _outcomes(nodes[0], known, mixed)
    for node in nodes[1:]:
        found = frozenset(combine(a, b) for a, b in product(found, _outcomes(node, known, mixed)))
    return found


def _and(a: bool | None, b: bool | None) -> bool | None:
    return False if a is False or b is False else None if a is None or b is None else True


def _or(a: bool | None, b: bool | None) -> bool | None:
    return True if a is True or b is True else None if a is None or b is None else False


def _constant(node: ast.expr, found: Mapping[str, Facts], mixed: Mapping[str, frozenset[str]]) -> Outcomes:
    """Return the outcome where each column has one value: what one row says."""
    table = pa.table({name: [one.least] for name, one in found.items()} or {"": [None]})
    value = evaluate(node, table, mixed)
    return frozenset({value.as_py() if isinstance(value, pa.Scalar) else value[0].as_py()})


def _compared(column: Facts, comparison: ast.cmpop, right: ast.expr, *, is_mixed: bool) -> Outcomes:
    """Return the outcomes of comparing a column of several values with a literal."""
    missing: set[bool | None] = {None} if column.n_missing else set()
    if isinstance(comparison, (ast.Is, ast.IsNot)):
        # Whether a value is missing is never itself missing.
        is_missing = (True, False) if column.n_missing else (False,)
        return frozenset(one if isinstance(comparison, ast.Is) else not one for one in is_missing)
    value = ast.literal_eval(right)
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if is_mixed and any(kind(pa.scalar(one).type) != kind(pa.scalar(column.least).type) for one in values):
        return _ANY
    if any(one is None or _is_rounded(column, one) for one in values):
        return _ANY
    if isinstance(comparison, (ast.In, ast.NotIn, ast.Eq, ast.NotEq)):
        # The bounds themselves occur, so a column of several values is never equal to one throughout.
        inside = any(column.least <= one <= column.most for one in values)
        found = {True, False} if inside else {False}
        equal = isinstance(comparison, (ast.In, ast.Eq))
        return frozenset(missing | {one if equal else not one for one in found})
    compare = _LESS[type(comparison)]
    return frozenset(missing | {compare(column.least, value), compare(column.most, value)})


def _is_rounded(column: Facts, value: Any) -> bool:
    """Return whether a comparison would round a number.

    Raises
    ------
    TypeError
        One is a truth value, and the other is not.
    """
    if isinstance(value, bool) != isinstance(column.least, bool):
        raise TypeError("a truth value is compared with something else")
    return isinstance(value, float) != isinstance(column.least, float) and abs(value) >= EXACT
