"""Cells in JSON."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from cellmill.serving.cells import Cells, check_size, make_cells
from cellmill.serving.config import LimitsConfig
from cellmill.serving.errors import InvalidBodyError
from cellmill.serving.schemas import CellsBody, JsonCell


def read_json(body: bytes, limits: LimitsConfig) -> Cells:
    """Return the cells in a JSON body (`CellsBody`).

    Raises
    ------
    InvalidBodyError
        It is not JSON, or not of the schema.
    TooLargeError, CountsError
        As in `make_cells`.
    """
    try:
        parsed = CellsBody.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "body"
        raise InvalidBodyError(
            f"{place}: {first['msg']}.", where="JSON body", fix="See the schema CellsBody in /openapi.json."
        ) from error
    if parsed.matrix is not None:
        genes = parsed.genes or []
        matrix = parsed.matrix
        n = len(matrix.indptr) - 1
        ids = parsed.ids if parsed.ids is not None else [str(i) for i in range(n)]
        data, indices = np.array(matrix.data, dtype=np.float64), _integers(matrix.indices)
        indptr = _integers(matrix.indptr)
    else:
        cells = parsed.cells or []
        ids = [cell.id if cell.id is not None else str(i) for i, cell in enumerate(cells)]
        genes = parsed.genes if parsed.genes is not None else _genes_of(cells)
        check_size(len(cells), len(genes), sum(len(cell.counts) for cell in cells), limits, "JSON body")
        data, indices, indptr = _collect(cells, genes)
    return make_cells(
        ids=ids,
        genes=genes,
        symbols=None,
        data=data,
        indices=indices,
        indptr=indptr,
        limits=limits,
        where="JSON body",
    )


def _integers(values: list[int]) -> npt.NDArray[np.int64]:
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError as error:
        raise InvalidBodyError("An index is above 2**63.", where="matrix") from error


def _genes_of(cells: list[JsonCell]) -> list[str]:
    """Return the names that cells give counts for, in order of first appearance."""
    seen: dict[str, None] = {}
    for i, cell in enumerate(cells):
        if not isinstance(cell.counts, dict):
            raise InvalidBodyError(
                f"cells.{i}.counts is an array, but there is no `genes`.",
                where="JSON body",
                fix="Give `genes`, or counts by name.",
            )
        seen.update(dict.fromkeys(cell.counts))
    return list(seen)


def _collect(
    cells: list[JsonCell], genes: list[str]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    column = {name: i for i, name in enumerate(genes)}
    named = any(isinstance(cell.counts, dict) for cell in cells)
    if named and len(column) < len(genes):
        raise InvalidBodyError(
            "A gene stands twice in `genes`, so counts by name have no one place.", where="genes", fix="Send arrays."
        )
    data: list[npt.NDArray[np.float64]] = []
    indices: list[npt.NDArray[np.int64]] = []
    for i, cell in enumerate(cells):
        if isinstance(cell.counts, dict):
            unknown = next((name for name in cell.counts if name not in column), None)
            if unknown is not None:
                raise InvalidBodyError(f"cells.{i} counts {unknown!r}, which is not in `genes`.", where="JSON body")
            data.append(np.array(list(cell.counts.values()), dtype=np.float64))
            indices.append(np.array([column[name] for name in cell.counts], dtype=np.int64))
        elif len(cell.counts) != len(genes):
            raise InvalidBodyError(
                f"cells.{i} has {len(cell.counts):,} counts for {len(genes):,} genes.", where="JSON body"
            )
        else:
            row = np.array(cell.counts, dtype=np.float64)
            (at,) = np.nonzero(row)  # NaN counts as non-zero and is refused with the counts
            data.append(row[at])
            indices.append(at.astype(np.int64))
    indptr = np.zeros(len(cells) + 1, dtype=np.int64)
    np.cumsum([values.size for values in data], out=indptr[1:])
    empty_data, empty_indices = np.empty(0, np.float64), np.empty(0, np.int64)
    return np.concatenate([empty_data, *data]), np.concatenate([empty_indices, *indices]), indptr
