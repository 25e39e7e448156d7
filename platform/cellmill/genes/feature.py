"""What a token stands for: a gene, a peak or a protein."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Feature:
    """One measured feature.

    Parameters
    ----------
    id
        What identifies it for ever, in all modalities: an Ensembl gene id (``ENSG00000141510``), a peak's assembly and
        coordinates (``hg38:chr1:9963-10665``), a protein's organism and antigen (``protein:human:CD3``).
    symbol
        The name that people use; `id` where there is none.
    modality
        ``rna``, ``atac`` or ``protein``.
    organism
        ``human`` or ``mouse``.
    release
        The annotation it comes from, for instance ``GENCODE v48``; of a peak, the assembly.
    """

    id: str
    symbol: str
    modality: str = "rna"
    organism: str = ""
    release: str = ""
