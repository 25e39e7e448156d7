"""What the ingestion needs of a source, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import pandas as pd
from scipy import sparse

from cellmill.ingestion.sources.starts import Starts

NAMED_COUNTS = frozenset({"counts", "count", "raw_counts", "rawcounts", "raw_count", "raw", "umi", "umis"})
"""Names of layers that say that counts are in them."""

INDEX = "index"
"""Stands for the index of a table where the name of a column is asked for."""


class Source(Protocol):
    """Cells in a file, a folder or in memory.

    Attributes
    ----------
    name
        Name of the data set.
    url
        Where it is, as recorded in the lineage and named in messages.
    stamp
        Changes when the file does; empty for what is in memory.
    """

    name: str
    url: str
    stamp: str

    @property
    def digest(self) -> str:
        """Digest of its bytes, see `cellmill.digest`."""
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

    def starts(self, place: str) -> Starts:
        """Return where the values of each cell begin among all that are stored at `place`: int64 [n_cells + 1].

        What is read at once is chosen by it: it is exact, or an upper bound, wherever the format tells it.
        """
        ...

    def var(self, place: str) -> pd.DataFrame:
        """Return the features' table that belongs to the matrix at `place`.

        The column ``modality`` is reserved: ``rna``, ``atac`` or ``protein`` where the format knows what a feature is,
        any other text for what is of none of these.
        """
        ...

    def default_names(self, place: str) -> tuple[str, str | None]:
        """Return the columns of `var` that hold ids and symbols unless the configuration says otherwise.

        ``index`` stands for the index; the second is None where there is but one.
        """
        ...

    def obs_columns(self) -> list[str]:
        """Return the names of the columns of the cells' table."""
        ...

    def obs(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Return rows ``[start, stop)`` of columns of the cells' table, indexed by barcode."""
        ...

    def rows(self, place: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows ``[start, stop)`` of the matrix at `place`: the values as stored, of any numeric dtype."""
        ...


@runtime_checkable
class Blocks(Protocol):
    """A source whose format may store a matrix in pieces that are decoded as a whole, however few cells are read."""

    def blocks(self, place: str) -> dict[str, int]:
        """Return the bytes of such pieces of the matrix at `place`, by what they are (``Decoding a chunk of data``)."""
        ...


@runtime_checkable
class ObsBlocks(Protocol):
    """A source that may store the cells' table in such pieces."""

    def obs_blocks(self, columns: Sequence[str]) -> dict[str, int]:
        """Return the bytes of such pieces of the index and of columns, by what they are."""
        ...


@runtime_checkable
class Tables(Protocol):
    """A source that may have further tables of its cells, which are read when they are named."""

    def tables(self) -> list[str]:
        """Return their places, such as ``obsm/protein_counts``."""
        ...
