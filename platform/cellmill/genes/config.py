"""How genes, peaks and proteins become features."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cellmill.config import Config

Organism = Literal["human", "mouse"]


class GeneConfig(Config):
    """How gene names become features, and how much may be lost on the way.

    Parameters
    ----------
    duplicates
        What happens to several columns of one gene: ``sum`` adds their counts; ``keep`` keeps the first under
        the gene's id and gives each further one a feature of its own (``ENSG...-1``, ``-2``, ...).
    aliases
        Whether previous symbols, aliases and dates made by spreadsheets are followed.
    ortholog_to
        Replace each gene by its one-to-one ortholog in this organism; genes without one are dropped.
    max_genes_lost
        Refuse above this share of genes without a place (spike-in and viral features are not counted).
    max_umis_lost
        Refuse above this share of UMIs in such genes.
    """

    duplicates: Literal["sum", "keep"] = "sum"
    aliases: bool = True
    ortholog_to: Organism | None = None
    max_genes_lost: float = Field(default=0.5, ge=0, le=1)
    max_umis_lost: float = Field(default=0.2, ge=0, le=1)


class PeakConfig(Config):
    """What becomes of ATAC peaks.

    Parameters
    ----------
    binarise
        Store 1 for every count above zero.
    regions
        A BED file with a fixed set of regions, to which all peaks are mapped by overlap; without it peaks are kept as
        they are.
    regions_assembly
        The assembly of these regions. Peaks of another one are refused: coordinates are not lifted over.
    min_overlap
        Smallest overlap of a peak and a region, as a share of the shorter of the two.
    max_peaks_lost, max_counts_lost
        Refuse above this share of peaks, or of their counts, without a place.
    """

    binarise: bool = False
    regions: str | None = None
    regions_assembly: str | None = None
    min_overlap: float = Field(default=0.5, gt=0, le=1)
    max_peaks_lost: float = Field(default=0.5, ge=0, le=1)
    max_counts_lost: float = Field(default=0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _assembly(self) -> Self:
        if (self.regions is None) != (self.regions_assembly is None):
            raise ValueError("`regions` and `regions_assembly` belong together: give both or neither")
        return self


class ProteinConfig(Config):
    """What becomes of proteins measured by antibodies.

    Parameters
    ----------
    duplicates
        What happens to several antibodies of one protein: ``keep`` gives each further one a feature of its own
        (``...#2``, ``#3``), since their scales differ; ``sum`` adds their counts.
    controls
        Whether isotype controls are dropped or kept.
    """

    duplicates: Literal["sum", "keep"] = "keep"
    controls: Literal["drop", "keep"] = "drop"
