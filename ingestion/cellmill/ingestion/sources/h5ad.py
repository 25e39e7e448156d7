"""h5ad files: AnnData in HDF5, of every encoding since 0.5."""

from __future__ import annotations

from cellmill.errors import SourceError
from cellmill.ingestion.config import SourceConfig
from cellmill.ingestion.sources.anndata_group import AnnDataGroupSource
from cellmill.ingestion.sources.base import Source
from cellmill.ingestion.sources.hdf5 import hdf5_names, open_hdf5
from cellmill.ingestion.sources.hdf5_tree import Hdf5Tree
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.translating import reading_hdf5


class H5ad:
    """The format ``h5ad``."""

    name = "h5ad"

    def recognises(self, place: Place) -> bool:
        """Return whether it is HDF5 with one table of cells and one of features."""
        names = hdf5_names(place)
        return {"obs", "var"} <= names and "mod" not in names

    def open(self, place: Place, name: str, config: SourceConfig) -> Source:
        """Open a file.

        Raises
        ------
        SourceError
            It is missing, is not HDF5, or is HDF5 but no AnnData.
        """
        file = open_hdf5(place)
        try:
            if missing := [key for key in ("obs", "var") if key not in file]:
                raise SourceError(
                    f"The file is HDF5 but no h5ad: it has no {' and no '.join(missing)}.",
                    where=place.url,
                    fix="Give an AnnData file as written by `adata.write_h5ad`.",
                )
            with reading_hdf5(place.url):
                return AnnDataGroupSource(place, name, Hdf5Tree(file, place.url))
        except SourceError:
            file.close()
            raise


FORMAT = H5ad()
