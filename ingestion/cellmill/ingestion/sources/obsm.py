"""Further tables of cells, ``obsm`` of an AnnData, as matrices: one column a feature, read by blocks of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from cellmill.errors import SourceError
from cellmill.ingestion.sources.matrix import native
from cellmill.ingestion.sources.starts import EvenStarts, Starts
from cellmill.ingestion.sources.table import Table

PREFIX = "obsm/"
_NAMES = "uns/"


class TableMatrix:
    """The numeric columns of a table as a matrix.

    Parameters
    ----------
    table
        The table.
    where
        File and place, for messages.
    """

    def __init__(self, table: Table, where: str) -> None:
        self._table, self._where = table, where
        self.shape = (table.n_rows, len(table.columns))

    @property
    def blocks(self) -> dict[str, int]:
        """Bytes of the chunks that are decoded as a whole, by what they are."""
        return self._table.blocks(self._table.columns)

    @property
    def starts(self) -> Starts:
        """Where the values of each row begin among all that are stored: int64 [rows + 1]."""
        return EvenStarts([self.shape[0]], [self.shape[1]])

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return rows ``[start, stop)``.

        Raises
        ------
        SourceError
            A column cannot be read, or holds no numbers.
        """
        columns = [self._numbers(name, start, stop) for name in self._table.columns]
        block = np.column_stack(columns) if columns else np.zeros((stop - start, 0), np.uint8)
        return sparse.csr_matrix(native(block, self._where))

    def _numbers(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        values = np.asarray(self._table.column(name, start, stop))
        if values.dtype.kind not in "biuf":
            raise SourceError(
                f"The column {name!r} holds no numbers.", where=self._where, fix="Take it out of the table of counts."
            )
        return values


def names_of_columns(n: int, uns: dict[str, Any]) -> pd.DataFrame:
    """Return the features of an array of `n` columns, which has no names of its own.

    Lists of that length in ``uns`` are offered as columns ``uns/NAME``: that is where names are kept by convention.
    """
    found = {
        f"{_NAMES}{name}": [_text(value) for value in values] for name, values in uns.items() if _is_list(values, n)
    }
    return pd.DataFrame(found, index=pd.RangeIndex(n))


def _is_list(values: Any, n: int) -> bool:
    return getattr(values, "shape", None) == (n,) and values.dtype.kind in "OSUT"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
