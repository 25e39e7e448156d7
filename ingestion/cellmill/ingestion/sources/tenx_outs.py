"""Folders of Cell Ranger's results: the filtered matrix in them, as HDF5 if it is there."""

from __future__ import annotations

from collections.abc import Iterator

from cellmill.ingestion.config import SourceConfig
from cellmill.ingestion.sources import tenx_h5, tenx_mtx
from cellmill.ingestion.sources.base import Source
from cellmill.ingestion.sources.listing import children
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.tenx_features import check_genome
from cellmill.ingestion.sources.tenx_mtx import matrices

_MATRICES = (
    "filtered_feature_bc_matrix.h5",
    "filtered_feature_bc_matrix",
    "sample_filtered_feature_bc_matrix.h5",
    "sample_filtered_feature_bc_matrix",
    "filtered_gene_bc_matrices_h5.h5",
    "filtered_gene_bc_matrices",
)
"""The likeliest first; raw matrices, with their empty droplets, are read only when they are named."""

_FOLDERS = ("", "outs/", "count/", "outs/count/")


class TenxOutsFormat:
    """The format ``10x_outs``: the folder of a run, its ``outs``, or a folder with a folder for each genome."""

    name = "10x_outs"

    def recognises(self, place: Place) -> bool:
        """Return whether there is a filtered matrix below a folder that is no matrix itself."""
        return place.is_dir and not matrices(place) and (bool(_genomes(place)) or next(_found(place), None) is not None)

    def open(self, place: Place, name: str, config: SourceConfig) -> Source:
        """Open the matrix.

        Raises
        ------
        SourceError
            There are several genomes, or the matrix cannot be read.
        """
        inner = next(_found(place), place)
        if not inner.is_dir:
            return tenx_h5.FORMAT.open(inner, name, config)
        if genomes := _genomes(inner):
            check_genome(genomes, config.genome, inner.url)
            inner = Place(f"{inner.location}/{config.genome or genomes[0]}")
            config = config.model_copy(update={"genome": None})
        return tenx_mtx.FORMAT.open(inner, name, config)


FORMAT = TenxOutsFormat()


def _found(place: Place) -> Iterator[Place]:
    names = set(children(place))
    for folder in _FOLDERS:
        if folder and folder.split("/")[0] not in names:
            continue
        here = Place(f"{place.location}/{folder}".rstrip("/")) if folder else place
        below = set(children(here)) if here.is_dir else set()
        yield from (Place(f"{here.location}/{name}") for name in _MATRICES if name in below)


def _genomes(place: Place) -> list[str]:
    """Return the folders, all of which are matrices of Cell Ranger 1 or 2."""
    if place.name != "filtered_gene_bc_matrices":
        return []
    below = [Place(f"{place.location}/{name}") for name in children(place)]
    return [one.name for one in below if one.is_dir and matrices(one)]
