"""What happened to a data set: genes, UMIs and cells."""

from __future__ import annotations

from pydantic import Field

from cellmill.config import Config
from cellmill.genes import GeneReport


class DatasetReport(Config):
    """One source of an ingestion.

    Attributes
    ----------
    dataset, url, source_digest, licence, organism
        What it is.
    counts
        Where its raw counts were found.
    genes
        What became of genes and UMIs; of the peaks or proteins, where no gene was measured.
    others
        The same of further modalities.
    unpaired
        Cells that are only in one of several matrices, or are kept though it lacks them, by which.
    unread
        Places of further counts that nobody asked for, and that are not in the atlas.
    cells_in, cells_out
        Cells in the source, and in the snapshot.
    dropped
        Cells left out, by reason.
    marked
        Cells in the snapshot that are marked as duplicates, by the data set that had them first.
    untold
        Withdrawals that were made by a column which the source does not have, and the column: of its cells, only exact
        copies of withdrawn ones were left out.
    hash_bytes_read
        Bytes of the index of content hashes that were read to find its duplicates: of an ingestion of several
        sources, its share by cells.
    shards
        Shards it became.
    """

    dataset: str
    url: str
    source_digest: str
    licence: str
    organism: str
    counts: str
    genes: GeneReport
    others: tuple[GeneReport, ...] = ()
    unpaired: dict[str, int] = Field(default_factory=dict)
    unread: tuple[str, ...] = ()
    cells_in: int
    cells_out: int
    dropped: dict[str, int]
    marked: dict[str, int] = Field(default_factory=dict)
    untold: dict[int, str] = Field(default_factory=dict)
    hash_bytes_read: int = 0
    shards: int

    @property
    def parts(self) -> tuple[GeneReport, ...]:
        """What became of the features of each modality."""
        return (self.genes, *self.others)

    @property
    def untold_lines(self) -> list[str]:
        """What is said of each withdrawal that could not be looked for."""
        return [
            f"withdrawal {number} names {column}, which this source does not have: only exact copies of its cells were "
            "looked for."
            for number, column in self.untold.items()
        ]

    @property
    def label(self) -> str:
        """Name of the data set and of the file."""
        return f"{self.dataset} ({self.url.rsplit('/', 1)[-1]})"


def labels(reports: list[DatasetReport]) -> list[str]:
    """Return a name for each report: the data set's, with the file's where a data set has several."""
    names = [report.dataset for report in reports]
    return [report.label if names.count(report.dataset) > 1 else report.dataset for report in reports]


def parts(reports: list[DatasetReport]) -> dict[str, GeneReport]:
    """Return the report of every modality of every data set, by a name that says both where there are several."""
    return {
        name if len(report.parts) == 1 else f"{name}, {part.modality}": part
        for name, report in zip(labels(reports), reports, strict=True)
        for part in report.parts
    }
