"""Cells as an Arrow IPC stream: one row a cell, with the genes counted in it and their counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cellmill.serving.cells import Cells, check_size, make_cells
from cellmill.serving.config import LimitsConfig
from cellmill.serving.errors import InvalidBodyError

_WHERE = "Arrow body"
_COLUMNS = "Columns: `genes` list<string> (dictionary-encoded if you like), `counts` list<number>, and `id` string."


def read_arrow(body: bytes, limits: LimitsConfig) -> Cells:
    """Return the cells in an Arrow IPC stream.

    Columns: ``genes``, a list of gene names a row (``list<string>`` or ``list<dictionary<string>>``); ``counts``, a
    list of as many numbers; ``id`` (optional), the name of the cell. Genes that a cell does not list are zero in it;
    with dictionaries, all names of the first dictionary are genes of the request, counted or not.

    Raises
    ------
    InvalidBodyError
        It is not Arrow, or not of these columns.
    TooLargeError, CountsError
        As in `make_cells`.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            table = _read(reader, limits)
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowKeyError, pa.ArrowNotImplementedError, OSError) as error:
        raise InvalidBodyError(f"The body is no Arrow IPC stream: {error}", where=_WHERE, fix=_COLUMNS) from error
    genes, indptr = _lists(table, "genes")
    counts, count_indptr = _lists(table, "counts")
    if not np.array_equal(indptr, count_indptr):
        raise InvalidBodyError("Lists of genes and counts differ in length.", where=_WHERE, fix=_COLUMNS)
    if not (pa.types.is_integer(counts.type) or pa.types.is_floating(counts.type)):
        raise InvalidBodyError(f"counts are {counts.type}, not numbers.", where=_WHERE, fix=_COLUMNS)
    ids = [str(i) for i in range(table.num_rows)]
    if "id" in table.column_names:
        ids = _strings(table.column("id").combine_chunks(), "id")
    names, indices = _encode(genes)
    check_size(len(ids), len(names), len(counts), limits, _WHERE)
    return make_cells(
        ids=ids,
        genes=names,
        symbols=None,
        data=counts.to_numpy(zero_copy_only=False),
        indices=indices,
        indptr=indptr,
        limits=limits,
        where=_WHERE,
    )


def _read(reader: Any, limits: LimitsConfig) -> Any:
    """Read batch by batch, so that too many cells end it early."""
    missing = [name for name in ("genes", "counts") if name not in reader.schema.names]
    if missing:
        raise InvalidBodyError(f"There is no column {missing[0]!r}.", where=_WHERE, fix=_COLUMNS)
    batches, n = [], 0
    for batch in reader:
        n += batch.num_rows
        check_size(n, 1, 0, limits, _WHERE)
        batches.append(batch)
    return pa.Table.from_batches(batches, reader.schema).unify_dictionaries()


def _lists(table: Any, name: str) -> tuple[Any, npt.NDArray[np.int64]]:
    """Return the values of a list column and their offsets."""
    column = table.column(name).combine_chunks()
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise InvalidBodyError(f"Column {name!r} is {column.type}, not a list.", where=_WHERE, fix=_COLUMNS)
    values = column.flatten()
    if column.null_count or values.null_count:
        raise InvalidBodyError(f"Column {name!r} has nulls.", where=_WHERE, fix="Leave out what was not measured.")
    indptr = np.zeros(len(column) + 1, dtype=np.int64)
    np.cumsum(pc.list_value_length(column).to_numpy(zero_copy_only=False), out=indptr[1:])
    return values, indptr


def _encode(genes: Any) -> tuple[list[str], npt.NDArray[np.int64]]:
    if not pa.types.is_dictionary(genes.type):
        if not (pa.types.is_string(genes.type) or pa.types.is_large_string(genes.type)):
            raise InvalidBodyError(f"genes are {genes.type}, not strings.", where=_WHERE, fix=_COLUMNS)
        genes = pc.dictionary_encode(genes)
    return _strings(genes.dictionary, "genes"), genes.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _strings(values: Any, name: str) -> list[str]:
    if values.null_count or not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise InvalidBodyError(f"Column {name!r} must be strings without nulls.", where=_WHERE, fix=_COLUMNS)
    found: list[str] = values.to_pylist()
    return found
