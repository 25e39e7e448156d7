"""What the ingestion needs of a source, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pandas as pd
from scipy import sparse

NAMED_COUNTS = frozenset({"counts", "count", "raw_counts", "rawcounts", "raw_count", "raw", "umi", "umis"})
"""Names of layers that say that counts are in them."""


class Source(Protocol):
    """Cells in a file or in memory.

    Attributes
    ----------
    name
        Name for messages.
    url
        Where it is, as recorded in the lineage.
    stamp
        Size and time of change of the file, empty for what is in memory.
    """

    name: str
    url: str
    stamp: str

    @property
    def sha256(self) -> str:
        """Digest of its bytes."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        ...

    def places(self) -> Sequence[str]:
        """Return the places where counts may be, the likeliest first."""
        ...

    def entries(self, place: str) -> int:
        """Return the number of stored values of the matrix at `place`."""
        ...

    def var(self, place: str) -> pd.DataFrame:
        """Return the features' table that belongs to the matrix at `place`."""
        ...

    def obs_columns(self) -> list[str]:
        """Return the names of the columns of the cells' table."""
        ...

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return columns of the cells' table, indexed by barcode."""
        ...

    def rows(self, place: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows ``[start, stop)`` of the matrix at `place`."""
        ...
