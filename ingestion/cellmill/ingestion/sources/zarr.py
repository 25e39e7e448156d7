"""AnnData in zarr, of formats 2 and 3: folders, prefixes of object stores, web servers and zip archives."""

from __future__ import annotations

from functools import cached_property

from cellmill.errors import SourceError
from cellmill.ingestion.config import SourceConfig
from cellmill.ingestion.sources.anndata_group import AnnDataGroupSource
from cellmill.ingestion.sources.base import Source
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.zarr_files import is_zarr, zarr_files
from cellmill.ingestion.sources.zarr_tree import ZarrTree


class ZarrSource(AnnDataGroupSource):
    """Cells of an AnnData in zarr.

    Parameters
    ----------
    place
        The folder, URL or archive.
    name
        Name of the data set.

    Raises
    ------
    SourceError
        It is no AnnData, has no cells, or its tables cannot be read.
    """

    def __init__(self, place: Place, name: str) -> None:
        self._files = zarr_files(place)
        tree = ZarrTree(self._files)
        if missing := [key for key in ("obs", "var") if key not in tree]:
            raise SourceError(
                f"It is a zarr group but no AnnData: it has no {' and no '.join(missing)}.",
                where=place.url,
                fix="Give the group that `adata.write_zarr` wrote; of a SpatialData, one of its `tables`.",
            )
        super().__init__(place, name, tree)
        self.stamp = self._files.stamp

    @cached_property
    def digest(self) -> str:
        """Digest of the names and bytes of all files."""
        return self._files.digest()


class Zarr:
    """The format ``zarr``."""

    name = "zarr"

    def recognises(self, place: Place) -> bool:
        """Return whether it is a zarr group with one table of cells and one of features."""
        if not is_zarr(place):
            return False
        tree = ZarrTree(zarr_files(place))
        return "obs" in tree and "var" in tree and "mod" not in tree

    def open(self, place: Place, name: str, config: SourceConfig) -> Source:
        """Open it; see `ZarrSource`."""
        return ZarrSource(place, name)


FORMAT = Zarr()
