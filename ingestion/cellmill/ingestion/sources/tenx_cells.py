"""What files of 10x have in common, be they HDF5 or text: one matrix, barcodes, and a table of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from cellmill.errors import SourceError
from cellmill.ingestion.sources.starts import Starts
from cellmill.ingestion.sources.tenx_features import IDS, SYMBOLS


class _Matrix(Protocol):
    """Rows of cells over all features."""

    @property
    def starts(self) -> Starts:
        """Where each row begins: int64 [rows + 1]."""
        ...

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return rows ``[start, stop)``."""
        ...


class TenxCells:
    """The part of a source that is the same for all formats of 10x; how it is opened and closed is the format's."""

    url: str
    _barcodes: pd.Index
    _all: pd.DataFrame
    _columns: npt.NDArray[np.int64] | None
    _matrix: _Matrix

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self._barcodes)

    def places(self) -> Sequence[str]:
        """Return the one place of the counts."""
        return ["X"]

    def starts(self, place: str) -> Starts:
        """Return where the values of each cell begin among all that are stored: int64 [n_cells + 1]."""
        self._check(place)
        return self._matrix.starts

    def var(self, place: str) -> pd.DataFrame:
        """Return ids, symbols, types, modalities and genomes of the features."""
        self._check(place)
        return self._all if self._columns is None else self._all.iloc[self._columns]

    def default_names(self, place: str) -> tuple[str, str | None]:
        """Return the columns of ids and symbols."""
        return IDS, SYMBOLS if SYMBOLS in self._all else None

    def obs_columns(self) -> list[str]:
        """Return nothing: 10x knows barcodes only."""
        return []

    def obs(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Return a table of barcodes ``[start, stop)``."""
        return pd.DataFrame(index=self._barcodes[start:stop], columns=list(columns))

    def rows(self, place: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows ``[start, stop)``."""
        self._check(place)
        rows: Any = self._matrix.rows(start, stop)
        return rows if self._columns is None else rows[:, self._columns]

    def _check(self, place: str) -> None:
        if place != "X":
            raise SourceError(f"There is no matrix at {place!r}.", where=self.url, fix="There is: X.")
