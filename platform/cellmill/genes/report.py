"""What harmonisation did to a data set, and whether that is acceptable."""

from __future__ import annotations

from cellmill.config import Config
from cellmill.errors import GeneMappingError
from cellmill.genes.config import GeneConfig, PeakConfig, ProteinConfig
from cellmill.genes.status import LOST, Status


class GeneReport(Config):
    """Genes and UMIs of one data set by what became of them; or its peaks, or its proteins, and their counts.

    Parameters
    ----------
    modality
        ``rna``, ``atac`` or ``protein``; of columns that are none of these, what their source calls them.
    organism, release
        Organism and release of the features; of peaks, their assembly.
    genes_in, genes_out
        Input columns, and features they became.
    genes
        Number of input columns by status.
    umis
        UMIs by status.
    summed, umis_summed
        Input columns whose counts were added to another column's, and the UMIs in them.
    conflicts
        Input columns whose symbol is the approved symbol of another gene than their id; the id decided.
    genes_lost, umis_lost
        Shares without a feature; spike-in and viral features, isotype controls and columns of no known modality are
        counted neither above nor below the line.
    examples
        Up to 20 names of each status but the matched, those with most UMIs first.
    binarised
        Whether counts above 1 are stored as 1; `umis` are those before.
    hint
        What the names look like, where most of them are unknown.
    """

    modality: str = "rna"
    organism: str
    release: str
    genes_in: int
    genes_out: int
    genes: dict[Status, int]
    umis: dict[Status, float]
    summed: int
    umis_summed: float = 0.0
    conflicts: int
    genes_lost: float
    umis_lost: float
    examples: dict[str, tuple[str, ...]]
    binarised: bool = False
    hint: str = ""

    def check(self, config: GeneConfig | PeakConfig | ProteinConfig, where: str = "") -> None:
        """Refuse a data set of which too much is lost.

        Parameters
        ----------
        config
            The limits of this modality.
        where
            The data set, for the message.

        Raises
        ------
        GeneMappingError
            No gene is known, or the share of genes or of UMIs lost is above the limit in `config`; or a peak lies
            beyond the end of its chromosome.
        """
        limits: tuple[tuple[str, str], ...]
        if isinstance(config, GeneConfig):
            noun, limits = "genes", (("UMIs", "max_umis_lost"), ("genes", "max_genes_lost"))
        elif isinstance(config, PeakConfig):
            noun, limits = "peaks", (("counts", "max_counts_lost"), ("peaks", "max_peaks_lost"))
        else:
            noun, limits = "proteins", ()
        fix = self.hint or f"Names without a place, most frequent first: {', '.join(self._worst())}."
        known = f"{self.release} ({self.organism})"
        if self.genes_out == 0:
            raise GeneMappingError(f"None of the {self.genes_in:,} {noun} is known in {known}.", where=where, fix=fix)
        if self.genes.get(Status.OUTSIDE):
            raise GeneMappingError(f"The {noun} are not of {known}.", where=where, fix=fix)
        for share, (what, key) in zip((self.umis_lost, self.genes_lost), limits, strict=False):
            limit: float = getattr(config, key)
            if share > limit:
                raise GeneMappingError(
                    f"{share:.1%} of the {what} have no place in {known}; at most {limit:.0%} may be lost.",
                    where=where,
                    fix=f"{fix} If this loss is right, raise `{noun}.{key}`.",
                )

    def _worst(self) -> list[str]:
        found = [name for status in self.genes if status in LOST for name in self.examples.get(status, ())[:4]]
        return found[:8]
