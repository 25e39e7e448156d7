"""Dense matrices whose chunks reach over more cells than are read at once: each is decoded once, for a copy by rows.

Read a few cells at a time, every chunk would be decoded again for each few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellmill.atlas.jit import compiled
from cellmill.ingestion.sources.prepared import prepared
from cellmill.ingestion.sources.stored_rows import StoredRows, write_rows

_VALUES_AT_ONCE = 1 << 19
_FEW_CELLS = 256
_LOOKS = 3

Block = npt.NDArray[Any]


def is_tall(array: Any, cells: int) -> bool:
    """Return whether chunks of a matrix reach over far more cells than are read at once.

    Parameters
    ----------
    array
        The matrix in HDF5 or zarr.
    cells
        Which of its axes has the cells.
    """
    chunks: Any = getattr(array, "chunks", None)
    n_cells, n_features = int(array.shape[cells]), int(array.shape[1 - cells])
    return bool(chunks) and n_cells > _FEW_CELLS and min(chunks[cells], n_cells) * n_features > 2 * _VALUES_AT_ONCE


def by_rows(array: Any, cells: int, read: Callable[[Any], Block], identity: str, where: str) -> StoredRows:
    """Return a copy by rows of what is not zero, on this machine's disk, made once.

    Parameters
    ----------
    array
        The matrix.
    cells
        Which of its axes has the cells.
    read
        Returns the part of the array that slices say, in a dtype of this machine.
    identity
        Names the content.
    where
        The source and the place in it.

    Raises
    ------
    ResourceError
        The disk has no room.
    """
    shape = int(array.shape[cells]), int(array.shape[1 - cells])

    def block(row: int, column: int, n_rows: int, n_columns: int) -> Block:
        across = slice(row, row + n_rows), slice(column, column + n_columns)
        return read(across) if cells == 0 else read(across[::-1]).T

    height, width = int(array.chunks[cells]), int(array.chunks[1 - cells])

    def make(folder: Path) -> None:
        dtype, about = block(0, 0, 1, 1).dtype, _about(block, shape, height, width)
        write_rows(folder, _entries(block, shape, height, width), shape, about, dtype, where)

    return StoredRows(prepared(f"by rows: {identity}", make))


def _entries(
    read: Callable[[int, int, int, int], Block], shape: tuple[int, int], height: int, width: int
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Block]]:
    """Yield rows, columns and values of what is not zero, chunk by chunk."""
    across = max(1, _VALUES_AT_ONCE // (height * width)) * width
    for first in range(0, shape[0], height):
        for column in range(0, shape[1], across):
            block = read(first, column, height, across)
            step = max(1, _VALUES_AT_ONCE // max(block.shape[1], 1))
            for row in range(0, block.shape[0], step):
                part = sparse_of(block[row : row + step])
                if part.nnz:
                    lengths = np.diff(part.indptr)
                    rows = np.repeat(np.arange(lengths.size, dtype=np.int32), lengths) + np.int32(first + row)
                    yield rows, part.indices + np.int32(column), part.data


def _about(read: Callable[[int, int, int, int], Block], shape: tuple[int, int], height: int, width: int) -> int:
    """Return about how many values are not zero, by a few chunks."""
    last, most = (shape[0] - 1) // height, 0.0
    for number in sorted({last * look // (_LOOKS - 1) for look in range(_LOOKS)}):
        block = read(number * height, 0, height, width)
        most = max(most, np.count_nonzero(block) / max(block.size, 1))
    return int(most * shape[0] * shape[1])


def sparse_of(dense: Block) -> sparse.csr_matrix:
    """Return a dense block as CSR, without the copies that a conversion by coordinates makes."""
    values = np.ascontiguousarray(dense)
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(values, axis=1))]).astype(np.int32)
    matrix = sparse.csr_matrix(values.shape, dtype=values.dtype)
    matrix.indptr, matrix.indices = indptr, np.empty(int(indptr[-1]), np.int32)
    matrix.data = np.empty(int(indptr[-1]), values.dtype)
    _gather_nonzero(values, matrix.indices, matrix.data)
    return matrix


@compiled
def _gather_nonzero(dense: Block, indices: npt.NDArray[np.int32], data: Block) -> None:
    position = 0
    for row in range(dense.shape[0]):
        for column in range(dense.shape[1]):
            value = dense[row, column]
            if value != 0:
                indices[position] = column
                data[position] = value
                position += 1
