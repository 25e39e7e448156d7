"""Settings of gene harmonisation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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
