"""An AnnData in memory as a source."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from blake3 import blake3
from scipy import sparse

from cellmill.errors import SourceError
from cellmill.ingestion.sources.base import NAMED_COUNTS
from cellmill.ingestion.sources.matrix import native
from cellmill.ingestion.sources.modalities import with_modality
from cellmill.ingestion.sources.names import names_in
from cellmill.ingestion.sources.obsm import PREFIX, names_of_columns


class AnnDataSource:
    """Cells of an AnnData object.

    Parameters
    ----------
    adata
        The object; it is not changed.
    name
        Name of the data set.
    url
        Where it came from; an object made in memory has none.
    digest
        Digest of the file it came from; by default a digest of its content (matrices, names and ``obs``).
    stamp
        Size and time of change of the file it came from.
    """

    def __init__(self, adata: ad.AnnData, name: str, url: str = "", digest: str = "", stamp: str = "") -> None:
        if adata.n_obs == 0:
            raise SourceError("There are no cells.", where=url or name)
        self._adata = adata
        self.name = name
        self.url = url or f"memory:{name}"
        self._given = digest
        self.stamp = stamp

    @cached_property
    def digest(self) -> str:
        """Digest of the file's bytes, or of the object's content."""
        return self._given or self._digest()

    def close(self) -> None:
        """Do nothing: there is no file."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self._adata.n_obs)

    def places(self) -> Sequence[str]:
        """Return the places where counts may be, the likeliest first."""
        layers = [f"layers/{name}" for name in self._adata.layers]
        first = [place for place in layers if place.removeprefix("layers/").lower() in NAMED_COUNTS]
        raw = ["raw.X"] if self._adata.raw is not None else []
        own = ["X"] if self._adata.X is not None else []
        return [*first, *raw, *own, *(place for place in layers if place not in first)]

    def tables(self) -> list[str]:
        """Return the places of ``obsm``."""
        return [f"{PREFIX}{name}" for name in self._adata.obsm]

    def starts(self, place: str) -> npt.NDArray[np.int64]:
        """Return where the values of each cell begin among all that are stored at `place`."""
        matrix = self._matrix(place)
        if not sparse.issparse(matrix):
            return np.arange(matrix.shape[0] + 1, dtype=np.int64) * int(matrix.shape[1])
        starts = np.zeros(matrix.shape[0] + 1, np.int64)
        np.cumsum(matrix.getnnz(axis=1), out=starts[1:])
        return starts

    def var(self, place: str) -> pd.DataFrame:
        """Return the features' table that belongs to the matrix at `place`."""
        if place.startswith(PREFIX):
            table = self._table(place)
            if isinstance(table, pd.DataFrame):
                return pd.DataFrame(index=table.columns.astype(str))
            return names_of_columns(table.shape[1], dict(self._adata.uns))
        return with_modality(self._adata.raw.var if place == "raw.X" else self._adata.var)

    def default_names(self, place: str) -> tuple[str, str | None]:
        """Return the columns of `var` with ids and symbols."""
        return names_in(self.var(place))

    def obs_columns(self) -> list[str]:
        """Return the names of the columns of the cells' table."""
        return [str(name) for name in self._adata.obs.columns]

    def obs(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Return rows ``[start, stop)`` of columns of the cells' table, indexed by barcode."""
        table: pd.DataFrame = self._adata.obs[list(columns)].iloc[start:stop]
        return table

    def rows(self, place: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows ``[start, stop)`` of the matrix at `place`."""
        block = self._matrix(place)[start:stop]
        found = sparse.csr_matrix(block if sparse.issparse(block) else native(np.asarray(block)))
        try:
            found.check_format(full_check=True)
        except ValueError as error:
            raise SourceError(
                f"The sparse matrix is inconsistent: {error}.",
                where=f"{self.url}: {place}, cells {start} to {stop - 1}",
                fix="Build it anew from what it was made of.",
            ) from error
        return found

    def _matrix(self, place: str) -> Any:
        if place == "X":
            return self._adata.X
        if place == "raw.X" and self._adata.raw is not None:
            return self._adata.raw.X
        if place.startswith(PREFIX):
            table = self._table(place)
            matrix = table.to_numpy() if isinstance(table, pd.DataFrame) else table
            if matrix.ndim != 2 or getattr(getattr(matrix, "dtype", None), "kind", "") not in tuple("biuf"):
                raise SourceError(
                    f"{place} is no table of numbers.", where=self.url, fix="Name another, or make it one."
                )
            return matrix
        name = place.removeprefix("layers/")
        if name not in self._adata.layers:
            raise SourceError(
                f"There is no matrix at {place!r}.", where=self.url, fix=f"There are: {', '.join(self.places())}."
            )
        return self._adata.layers[name]

    def _table(self, place: str) -> Any:
        name = place.removeprefix(PREFIX)
        if name not in self._adata.obsm:
            raise SourceError(
                f"There is no {place!r}.", where=self.url, fix=f"obsm has: {', '.join(self._adata.obsm) or 'nothing'}."
            )
        return self._adata.obsm[name]

    def _digest(self) -> str:
        digest = blake3()
        for place in self.places():
            matrix = sparse.csr_matrix(self._matrix(place))
            for part in (matrix.data, matrix.indices, matrix.indptr):
                digest.update(np.ascontiguousarray(part).tobytes())
            digest.update("\0".join(map(str, self.var(place).index)).encode())
        obs = pd.util.hash_pandas_object(self._adata.obs.astype(str), index=True).to_numpy()
        digest.update(obs.tobytes())
        return digest.hexdigest()
