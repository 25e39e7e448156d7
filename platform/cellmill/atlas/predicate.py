"""Predicates over cell metadata: ``donor != 'D7' and n_genes >= 500`` becomes an Arrow expression, without eval."""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cellmill.errors import ConfigError

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FIX = "Write for instance: tissue == 'lung' and donor not in ['D1', 'D2'] and n_genes >= 500 and sex is not None."


def parse_where(where: str, columns: Sequence[str]) -> pc.Expression:
    """Parse a predicate into an Arrow expression.

    A comparison with a missing value is false, except ``is None``; ``!=`` and ``not in`` are true for a missing value.

    Parameters
    ----------
    where
        Comparisons of columns with numbers, text or lists of them, joined by ``and``, ``or``, ``not`` and brackets.
    columns
        The columns there are.

    Raises
    ------
    ConfigError
        The predicate is not valid, or names a column that is not there.
    """
    try:
        tree = ast.parse(where, mode="eval")
    except SyntaxError as error:
        raise ConfigError(f"The predicate cannot be read: {error.msg}.", where=where, fix=_FIX) from None
    return _Parser(where, columns).boolean(tree.body)


class _Parser:
    def __init__(self, where: str, columns: Sequence[str]) -> None:
        self.where, self.columns = where, columns

    def boolean(self, node: ast.expr) -> pc.Expression:
        match node:
            case ast.BoolOp(op=op, values=values):
                parts = [self.boolean(value) for value in values]
                join = operator.and_ if isinstance(op, ast.And) else operator.or_
                result = parts[0]
                for part in parts[1:]:
                    result = join(result, part)
                return result
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.boolean(operand)
            case ast.Name():
                return self.column(node)
            case ast.Compare():
                return self.comparison(node)
        raise self.unclear(node)

    def comparison(self, node: ast.Compare) -> pc.Expression:
        left, result = node.left, None
        for op, right in zip(node.ops, node.comparators, strict=True):
            part = self.pair(left, op, right)
            result = part if result is None else result & part
            left = right
        assert result is not None
        return result

    def pair(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(op, ast.Is | ast.IsNot):
            missing = self.column(left).is_null()
            return missing if isinstance(op, ast.Is) else ~missing
        if isinstance(op, ast.In | ast.NotIn):
            inside = self.column(left).isin(pa.array(self.values(right)))
            return inside if isinstance(op, ast.In) else ~inside
        if isinstance(left, ast.Name):
            first, second = self.column(left), self.value(right)
        else:
            first, second = self.value(left), self.column(right)
        compared = _COMPARE[type(op)](pc.scalar(first) if not isinstance(first, pc.Expression) else first, second)
        return pc.coalesce(compared, pc.scalar(isinstance(op, ast.NotEq)))

    def column(self, node: ast.expr) -> pc.Expression:
        if not isinstance(node, ast.Name):
            raise self.unclear(node)
        if node.id not in self.columns:
            near = difflib.get_close_matches(node.id, self.columns, n=1, cutoff=0.5)
            fix = f"Did you mean {near[0]!r}?" if near else f"Columns: {', '.join(self.columns)}."
            raise ConfigError(f"There is no column {node.id!r}.", where=self.where, fix=fix)
        return pc.field(node.id)

    def value(self, node: ast.expr) -> Any:
        try:
            found = ast.literal_eval(node)
        except ValueError:
            raise self.unclear(node) from None
        if not isinstance(found, str | int | float | bool):
            raise self.unclear(node)
        return found

    def values(self, node: ast.expr) -> list[Any]:
        if not isinstance(node, ast.List | ast.Tuple | ast.Set):
            raise self.unclear(node)
        return [self.value(item) for item in node.elts]

    def unclear(self, node: ast.expr) -> ConfigError:
        return ConfigError(f"{ast.unparse(node)!r} is not understood here.", where=self.where, fix=_FIX)
