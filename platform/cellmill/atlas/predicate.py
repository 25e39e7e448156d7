"""Predicates over the cells' metadata: a small language, read with care and never evaluated as Python.

``donor != 'human4' and n_genes >= 500``, ``cell_type in ['alpha', 'beta']``, ``disease is null``,
``not (assay = "10x 3' v3" or is_primary_data = false)``, ``contains(disease, 'diabetes')``. As in SQL, a comparison
with a missing value is not true, whichever way it goes.

Columns of the CELLxGENE schema may hold several values, ``asthma || type 2 diabetes mellitus``:
``has(disease, 'asthma')`` asks whether a value is one of them.

A value of another kind than its column is refused. But a column may be text in one shard and numbers or truth values in
another; the table of all shards has it as text. Then values of another kind than what they are compared with are
compared by their text (7 equals '7', true equals 'true'), which finds the rows that it finds in that table. Only
whether a text is less or greater than a number is missing, and is refused where no shard has numbers.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cellmill.errors import ConfigError

_TOKEN = re.compile(
    r"""(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*") | `(?P<quoted>[^`]+)`
      | (?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?) | (?P<word>[A-Za-z_][\w.]*)
      | (?P<equals>(?<![<>=!])=(?!=)) | (?P<differs><>) | (?P<rest>.)""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS = {
    **dict.fromkeys(("and", "or", "not", "in", "is")),
    "null": "None",
    "none": "None",
    "true": "True",
    "false": "False",
}
_FUNCTIONS = ("contains", "has")
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_FLIPPED = {"less": "greater", "less_equal": "greater_equal", "greater": "less", "greater_equal": "less_equal"}
_FIX = "For instance: donor != 'human4' and n_genes >= 500, or cell_type in ['alpha', 'beta'], or disease is null."


KINDS = frozenset({"text", "number", "truth"})
"""What may be compared with what: values of one kind."""


def kind(of: pa.DataType) -> str:
    """Return the kind of a type; types beside `KINDS` are each their own."""
    if pa.types.is_string(of) or pa.types.is_large_string(of):
        return "text"
    if pa.types.is_integer(of) or pa.types.is_floating(of):
        return "number"
    return "truth" if pa.types.is_boolean(of) else str(of)


@dataclass(frozen=True)
class Predicate:
    """A predicate that was read and understood.

    Attributes
    ----------
    text
        As it was written.
    columns
        Names of the columns it looks at, in order of first appearance.
    tree
        As `evaluate` takes it.
    mixed
        Columns that are of several kinds over the shards it is applied to, and these kinds.
    """

    text: str
    columns: tuple[str, ...]
    tree: ast.expr
    mixed: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def over(self, mixed: Mapping[str, frozenset[str]]) -> Predicate:
        """Return the predicate for shards over which some columns are of several kinds."""
        return replace(self, mixed={name: kinds for name, kinds in mixed.items() if name in self.columns})

    def mask(self, table: pa.Table) -> pa.ChunkedArray:
        """Return which rows fulfil the predicate; a missing answer is False.

        Raises
        ------
        ConfigError
            A column is compared with a value of another kind.
        """
        try:
            found = _boolean(evaluate(self.tree, table, self.mixed))
        except (pa.ArrowException, TypeError) as error:
            raise ConfigError(
                f"The predicate cannot be applied: {error}.",
                where=self.text,
                fix="Text stands in quotes, numbers do not; the columns' types are in `cellmill atlas show`.",
            ) from error
        if isinstance(found, pa.Scalar):
            found = pa.array([found.as_py()] * table.num_rows, pa.bool_())
        return pc.fill_null(found, False)

    def check(self, known: Iterable[str]) -> None:
        """Refuse a predicate over columns that are nowhere.

        Raises
        ------
        ConfigError
            Names the column, and the nearest that exists.
        """
        names = sorted(set(known))
        for column in self.columns:
            if column not in names:
                near = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
                fix = f"Did you mean {near[0]!r}?" if near else f"Columns: {', '.join(names)}."
                raise ConfigError(f"The cells have no column {column!r}.", where=self.text, fix=fix)


def parse(text: str) -> Predicate:
    """Read a predicate.

    Raises
    ------
    ConfigError
        It is not in the language.
    """
    source, names = _to_python(text)
    try:
        tree = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError("The predicate is not well-formed.", where=text, fix=_FIX) from error
    columns: dict[str, None] = {}
    _check(tree, names, columns, text, 0)
    return Predicate(text=text, columns=tuple(columns), tree=_renamed(tree, names))


def _to_python(text: str) -> tuple[str, dict[str, str]]:
    """Return the predicate in Python's spelling, and the columns behind the names it uses."""
    names: dict[str, str] = {}
    parts = []
    for found in _TOKEN.finditer(text):
        column = found["quoted"]
        if word := found["word"]:
            lower = word.lower()
            if lower in _KEYWORDS:
                parts.append(_KEYWORDS[lower] or lower)
                continue
            column = word if lower not in _FUNCTIONS else None
        if column:
            name = f"column_{len(names)}"
            names[name] = column
            parts.append(f" {name} ")
        elif found["equals"]:
            parts.append("==")
        elif found["differs"]:
            parts.append("!=")
        else:
            parts.append(found[0])
    return "".join(parts), names


_MAX_DEPTH = 100


def _check(node: ast.expr, names: dict[str, str], columns: dict[str, None], text: str, depth: int) -> None:
    """Refuse everything that is not in the language, and collect the columns."""
    children: list[ast.expr] = []
    match node:
        case ast.BoolOp(values=values):
            children = values
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            children = [operand]
        case ast.Compare(left=left, ops=operators, comparators=comparators):
            operands = [left, *comparators]
            right_kinds = all(_fits(op, right) for op, right in zip(operators, comparators, strict=True))
            if not right_kinds or not any(isinstance(item, ast.Name) for item in operands):
                raise ConfigError("A comparison needs a column and a value.", where=text, fix=_FIX)
            children = [item for item in operands if isinstance(item, ast.Name)]
            if any(not isinstance(item, ast.Name) and not _is_value(item) for item in operands):
                raise ConfigError("A comparison needs a column and a value.", where=text, fix=_FIX)
        case ast.Call(
            func=ast.Name(id="contains" | "has"), args=[ast.Name() as column, ast.Constant(value=str())], keywords=[]
        ):
            children = [column]
        case ast.Name(id=name) if name in names:
            columns[names[name]] = None
        case ast.Constant(value=bool()):
            pass
        case _:
            raise ConfigError("The predicate uses what is not in its language.", where=text, fix=_FIX)
    if depth > _MAX_DEPTH:
        raise ConfigError("The predicate is nested too deeply.", where=text)
    for child in children:
        _check(child, names, columns, text, depth + 1)


def _fits(operator: ast.cmpop, right: ast.expr) -> bool:
    if isinstance(operator, (ast.In, ast.NotIn)):
        return isinstance(right, (ast.List, ast.Tuple, ast.Constant))
    if isinstance(operator, (ast.Is, ast.IsNot)):
        return isinstance(right, ast.Constant) and right.value is None
    return not isinstance(right, (ast.List, ast.Tuple))


def _is_value(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=str() | int() | float() | None):
            return True
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
            return True
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return all(_is_value(item) for item in items)
    return False


class _Rename(ast.NodeTransformer):
    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(id=self._names.get(node.id, node.id), ctx=node.ctx)


def _renamed(tree: ast.expr, names: dict[str, str]) -> ast.expr:
    renamed: ast.expr = _Rename(names).visit(tree)
    return renamed


def evaluate(node: ast.expr, table: pa.Table, mixed: Mapping[str, frozenset[str]]) -> Any:
    """Return what a predicate's tree, or a part of it, is over the rows of a table; missing answers stay missing."""
    match node:
        case ast.BoolOp(op=operator, values=values):
            combine = pc.and_kleene if isinstance(operator, ast.And) else pc.or_kleene
            result = _boolean(evaluate(values[0], table, mixed))
            for value in values[1:]:
                result = combine(result, _boolean(evaluate(value, table, mixed)))
            return result
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return pc.invert(_boolean(evaluate(operand, table, mixed)))
        case ast.Compare(left=left, ops=operators, comparators=comparators):
            result = None
            for comparison, right in zip(operators, comparators, strict=True):
                one = _compare(left, comparison, right, table, mixed)
                result = one if result is None else pc.and_kleene(result, one)
                left = right
            return result
        case ast.Call(func=ast.Name(id=function), args=[ast.Name(id=column), ast.Constant(value=str(part))]):
            text = pc.cast(table.column(column), pa.string())
            return pc.match_substring(text, part) if function == "contains" else _has(text, part)
        case ast.Name(id=column):
            found = table.column(column)
            if "truth" in mixed.get(column, ()) and kind(found.type) not in ("truth", "null"):
                return pc.equal(pc.cast(found, pa.string()), "true")
            return found
        case ast.Constant(value=value):
            return pa.scalar(value, pa.bool_())
    raise TypeError("not a predicate")


def _has(text: Any, value: str) -> Any:
    """Return which texts, values with ``||`` between them, have `value` among them."""
    holding = [one for one in text.unique().to_pylist() if one and value in map(str.strip, one.split("||"))]
    return pc.if_else(pc.is_null(text), None, pc.is_in(text, value_set=pa.array(holding, pa.string())))


def _boolean(values: Any) -> Any:
    if pa.types.is_null(values.type):
        return pc.cast(values, pa.bool_())
    if not pa.types.is_boolean(values.type):
        raise TypeError(f"{values.type} is neither true nor false")
    return values


def _compare(
    left: ast.expr, operator: ast.cmpop, right: ast.expr, table: pa.Table, mixed: Mapping[str, frozenset[str]]
) -> Any:
    if isinstance(operator, (ast.Is, ast.IsNot)):
        missing = pc.is_null(_side(left, table), nan_is_null=True)
        return pc.invert(missing) if isinstance(operator, ast.IsNot) else missing
    values = _side(left, table)
    kinds = {one for side in (left, right) if isinstance(side, ast.Name) for one in mixed.get(side.id, ())}
    if isinstance(operator, (ast.In, ast.NotIn)):
        if pa.types.is_null(values.type):
            return pa.nulls(table.num_rows, pa.bool_())
        items = ast.literal_eval(right)
        # Python reads ('a') as 'a'.
        items = [items] if isinstance(right, ast.Constant) else items
        if kinds and any(kind(pa.scalar(item).type) not in (kind(values.type), "null") for item in items):
            values = pc.cast(values, pa.string())
            items = [pa.scalar(item).cast(pa.string()).as_py() for item in items]
        wanted = pa.array(items)
        if pa.types.is_null(wanted.type):
            wanted = wanted.cast(values.type)
        inside = pc.if_else(pc.is_null(values), None, pc.is_in(values, value_set=_like(wanted, values)))
        return pc.invert(inside) if isinstance(operator, ast.NotIn) else inside
    name = _COMPARE[type(operator)]
    other = _side(right, table)
    if isinstance(values, pa.Scalar) and not isinstance(other, pa.Scalar):
        values, other, name = other, values, _FLIPPED.get(name, name)
    if pa.types.is_null(values.type) or pa.types.is_null(other.type):
        return pa.nulls(table.num_rows, pa.bool_())
    if kinds and kind(values.type) != kind(other.type):
        if name in ("equal", "not_equal") or (isinstance(other, pa.Scalar) and kind(other.type) == "text"):
            values, other = pc.cast(values, pa.string()), pc.cast(other, pa.string())
        elif kind(other.type) in kinds:
            return pa.nulls(table.num_rows, pa.bool_())
    return pc.call_function(name, [values, other])


def _side(node: ast.expr, table: pa.Table) -> Any:
    return table.column(node.id) if isinstance(node, ast.Name) else pa.scalar(ast.literal_eval(node))


def _like(wanted: pa.Array, values: Any) -> pa.Array:
    """Return a list of values in the type of the column, unless that would change them."""
    if pa.types.is_integer(values.type) and pa.types.is_floating(wanted.type):
        return wanted.filter(pc.equal(wanted, pc.floor(wanted))).cast(values.type)
    return wanted.cast(values.type)
