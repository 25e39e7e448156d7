"""What a token stands for: a gene, a peak or a protein."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Feature:
    """One measured feature.

    Parameters
    ----------
    id
        What identifies it for ever: an Ensembl gene id, a peak's coordinates with its assembly, a protein's id.
    symbol
        The name that people use; `id` where there is none.
    modality
        ``rna``, ``atac`` or ``protein``.
    organism
        ``human`` or ``mouse``.
    release
        The annotation it comes from, for instance ``GENCODE v48``.
    """

    id: str
    symbol: str
    modality: str = "rna"
    organism: str = ""
    release: str = ""
