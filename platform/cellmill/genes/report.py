"""What harmonisation did to a data set, and whether that is acceptable."""

from __future__ import annotations

from cellmill.config import Config
from cellmill.errors import GeneMappingError
from cellmill.genes.config import GeneConfig
from cellmill.genes.status import LOST, Status


class GeneReport(Config):
    """Genes and UMIs of one data set by what became of them.

    Parameters
    ----------
    organism, release
        Organism and release of the features.
    genes_in, genes_out
        Input columns, and features they became.
    genes
        Number of input columns by status.
    umis
        UMIs by status.
    summed
        Input columns whose counts were added to another column's.
    conflicts
        Input columns whose symbol is the approved symbol of another gene than their id; the id decided.
    genes_lost, umis_lost
        Shares without a feature; spike-in and viral features are counted neither above nor below the line.
    examples
        Up to 20 names of each status but the matched, those with most UMIs first.
    hint
        What the names look like, where most of them are unknown.
    """

    organism: str
    release: str
    genes_in: int
    genes_out: int
    genes: dict[Status, int]
    umis: dict[Status, float]
    summed: int
    conflicts: int
    genes_lost: float
    umis_lost: float
    examples: dict[str, tuple[str, ...]]
    hint: str = ""

    def check(self, config: GeneConfig, where: str = "") -> None:
        """Refuse a data set of which too much is lost.

        Raises
        ------
        GeneMappingError
            No gene is known, or the share of genes or of UMIs lost is above the limit in `config`.
        """
        fix = self.hint or f"Names without a place, most frequent first: {', '.join(self._worst())}."
        if self.genes_out == 0:
            raise GeneMappingError(
                f"None of the {self.genes_in:,} genes is known in {self.release} ({self.organism}).",
                where=where,
                fix=fix,
            )
        for share, limit, what, key in (
            (self.umis_lost, config.max_umis_lost, "UMIs", "max_umis_lost"),
            (self.genes_lost, config.max_genes_lost, "genes", "max_genes_lost"),
        ):
            if share > limit:
                raise GeneMappingError(
                    f"{share:.1%} of the {what} have no place in {self.release} ({self.organism}); "
                    f"at most {limit:.0%} may be lost.",
                    where=where,
                    fix=f"{fix} If this loss is right, raise `genes.{key}`.",
                )

    def _worst(self) -> list[str]:
        found = [name for status in self.genes if status in LOST for name in self.examples.get(status, ())[:4]]
        return found[:8]
