"""10x HDF5 files: a group for each genome (Cell Ranger 1 and 2), or one matrix of typed features (since 3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from cellmill.errors import SourceError
from cellmill.ingestion.config import SourceConfig
from cellmill.ingestion.sources.hdf5 import is_hdf5, open_hdf5
from cellmill.ingestion.sources.hdf5_texts import read_texts
from cellmill.ingestion.sources.matrix import H5Matrix
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.starts import Starts
from cellmill.ingestion.sources.tenx_cells import TenxCells
from cellmill.ingestion.sources.tenx_features import check_genome, columns_of_genome, digest_of_part, feature_table
from cellmill.ingestion.sources.translating import reading_hdf5, translated

_PARTS = {"barcodes", "data", "indices", "indptr", "shape"}
_FIX = "Fetch the file again: Cell Ranger writes all of its arrays."


class TenxH5Source(TenxCells):
    """Cells of a 10x HDF5 file.

    Parameters
    ----------
    place
        The file.
    name
        Name of the data set.
    genome
        Which genome's features, where there are several. A file of Cell Ranger 1 or 2 has cells of its own for each.

    Raises
    ------
    SourceError
        An array is missing or has another size than the others, or the genome is not there, or not said.
    """

    _matrix: H5Matrix

    def __init__(self, place: Place, name: str, genome: str | None) -> None:
        self.name, self.url, self.stamp = name, place.url, place.stamp
        self._place, self._genome = place, genome
        self._file = open_hdf5(place)
        try:
            if isinstance(self._file.get("matrix"), h5py.Group):
                group = self._file["matrix"]
                features, texts = "features", ("id", "name", "feature_type", "genome")
            else:
                names = sorted(_genomes(self._file))
                check_genome(names, genome, self.url)
                group = self._file[genome or names[0]]
                features, texts = "", ("genes", "gene_names", "", "")
            self._open(group, group.get(features, group) if features else group, texts)
            modern = bool(features)
            self._columns = columns_of_genome(self._all, genome, self.url) if modern else None
            if not len(self._barcodes):
                raise SourceError("There are no cells.", where=self.url)
        except BaseException:
            self._file.close()
            raise

    def _open(self, group: h5py.Group, features: h5py.Group, texts: Sequence[str]) -> None:
        if missing := sorted(_PARTS - set(group)):
            raise SourceError(f"{group.name} has no {' and no '.join(missing)}.", where=self.url, fix=_FIX)
        shape = [int(n) for n in np.ravel(group["shape"][()])] if group["shape"].size == 2 else []
        if len(shape) != 2 or min(shape) < 0:
            raise SourceError(f"{group.name}/shape is not that of a matrix.", where=self.url, fix=_FIX)
        read = [read_texts(features, key, self.url) if key and key in features else None for key in texts]
        if read[0] is None:
            raise SourceError(f"{features.name} has no {texts[0]}.", where=self.url, fix=_FIX)
        self._barcodes = pd.Index(read_texts(group, "barcodes", self.url), dtype=object)
        sizes = {key: shape[0] for key, values in zip(texts, read, strict=True) if values is not None}
        found = {key: len(values) for key, values in zip(texts, read, strict=True) if values is not None}
        for key, n, wanted in [*((k, found[k], sizes[k]) for k in sizes), ("barcodes", len(self._barcodes), shape[1])]:
            if n != wanted:
                raise SourceError(f"There are {n:,} {key}, but the matrix has {wanted:,}.", where=self.url, fix=_FIX)
        self._all = feature_table(read[0], read[1], read[2], read[3])
        # Columns of genes, compressed by cell, are rows of cells.
        self._matrix = H5Matrix(group, f"{self.url}: {group.name}", ("csr", (shape[1], shape[0])))

    @cached_property
    def digest(self) -> str:
        """Digest of the file's bytes, and of the genome where one is asked for."""
        return digest_of_part(self._place.digest, self._genome)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @translated(reading_hdf5)
    def starts(self, place: str) -> Starts:
        """Return where the values of each cell begin among all that are stored: int64 [n_cells + 1]."""
        return super().starts(place)

    @translated(reading_hdf5)
    def rows(self, place: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows ``[start, stop)``."""
        return super().rows(place, start, stop)

    @translated(reading_hdf5)
    def blocks(self, place: str) -> dict[str, int]:
        """See `Blocks`."""
        return self._matrix.blocks


class TenxH5Format:
    """The format ``10x_h5``."""

    name = "10x_h5"

    def recognises(self, place: Place) -> bool:
        """Return whether a file has the groups of Cell Ranger."""
        if not is_hdf5(place):
            return False
        with open_hdf5(place) as file:
            matrix = file.get("matrix")
            return (isinstance(matrix, h5py.Group) and "barcodes" in matrix) or bool(_genomes(file))

    def open(self, place: Place, name: str, config: SourceConfig) -> TenxH5Source:
        """Open a file."""
        with reading_hdf5(place.url):
            return TenxH5Source(place, name, config.genome)


FORMAT = TenxH5Format()


def _genomes(file: h5py.File) -> list[str]:
    groups = ((name, item) for name, item in file.items() if isinstance(item, h5py.Group))
    return [name for name, item in groups if "genes" in item and "barcodes" in item]
