"""What happened to a data set: genes, UMIs and cells."""

from __future__ import annotations

from cellmill.config import Config
from cellmill.genes import GeneReport


class DatasetReport(Config):
    """One data set of an ingestion.

    Attributes
    ----------
    dataset, url, sha256, licence, organism
        What it is.
    counts
        Where its raw counts were found.
    genes
        What became of genes and UMIs.
    cells_in, cells_out
        Cells in the source, and in the atlas.
    dropped
        Cells left out, by reason.
    shards
        Shards it became.
    """

    dataset: str
    url: str
    sha256: str
    licence: str
    organism: str
    counts: str
    genes: GeneReport
    cells_in: int
    cells_out: int
    dropped: dict[str, int]
    shards: int
