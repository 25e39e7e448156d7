"""What the ingestion needs of a source, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pandas as pd
from scipy import sparse


class Source(Protocol):
    """Cells in a file or in memory.

    Attributes
    ----------
    name
        Name for messages.
    url
        Where it is, as recorded in the lineage.
    sha256
        Digest of its bytes.
    """

    name: str
    url: str
    sha256: str

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

    def obs(self) -> pd.DataFrame:
        """Return the cells' table."""
        ...

    def rows(self, place: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows ``[start, stop)`` of the matrix at `place`."""
        ...
