"""Features as 10x writes them: ids, symbols, types, and genomes of which one is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellmill.digest import digest_of
from cellmill.errors import SourceError
from cellmill.ingestion.sources.modalities import MODALITY, TERMS

IDS, SYMBOLS, TYPES = "gene_ids", "gene_symbols", "feature_types"
"""Columns of the features' table."""

_PREFIX = re.compile(r"^(\S+?)_+(?=ENS[A-Z]*G\d)")


def feature_table(
    ids: Sequence[str], symbols: Sequence[str] | None, types: Sequence[str] | None, genomes: Sequence[str] | None
) -> pd.DataFrame:
    """Return the table of features; without types all are genes.

    Parameters
    ----------
    ids, symbols, types, genomes
        One for each feature; None for what the file does not have. Without genomes they are taken from ids such as
        ``GRCh38_ENSG00000243485``, if all genes have such ids.
    """
    table = pd.DataFrame({IDS: list(ids)}, index=pd.Index(list(ids)), dtype=object)
    if symbols is not None:
        table[SYMBOLS] = list(symbols)
    if types is not None:
        table[TYPES] = list(types)
        table[MODALITY] = [TERMS.get(kind, kind) for kind in types]
    else:
        table[MODALITY] = "rna"
    is_gene = table[MODALITY].to_numpy() == "rna"
    table["genome"] = list(genomes) if genomes is not None else _genomes_of(table[IDS].to_numpy(), is_gene)
    return table


def columns_of_genome(table: pd.DataFrame, wanted: str | None, where: str) -> npt.NDArray[np.int64] | None:
    """Return the columns that belong to a genome, None for all; features of no genome belong to each.

    Cells stay, whether they have counts of that genome or not: those without any are left out by the limits on
    quality, and counted there.

    Raises
    ------
    SourceError
        There are several genomes and none is asked for, or the one that is asked for is not there.
    """
    genomes = table["genome"].to_numpy()
    names = sorted({genome for genome in genomes if genome})
    check_genome(names, wanted, where)
    if wanted is None or len(names) < 2:
        return None
    return np.flatnonzero((genomes == wanted) | (genomes == ""))


def check_genome(names: Sequence[str], wanted: str | None, where: str) -> None:
    """Refuse several genomes of which none is asked for, and one that is not there.

    Raises
    ------
    SourceError
        As said.
    """
    if wanted is None and len(names) > 1:
        raise SourceError(
            f"There are {len(names)} genomes: {', '.join(names)}.",
            where=where,
            fix=f"Say which with `genome`, for instance `genome: {names[0]}`; for all of them, name the file once for "
            "each, with a `dataset` of its own.",
        )
    if wanted is not None and wanted not in names:
        known = f"It has {', '.join(names)}." if names else "It does not say of which genome its features are."
        raise SourceError(f"There is no genome {wanted!r}.", where=where, fix=known)


def digest_of_part(digest: str, part: str | None) -> str:
    """Return the identity of what is read of a file: of the file, or of one part of several.

    Two parts of one file are two sources, whose cells are not the same.
    """
    return digest if part is None else digest_of(f"{digest}\0{part}".encode())


def _genomes_of(ids: npt.NDArray[np.object_], is_gene: npt.NDArray[np.bool_]) -> list[str]:
    found = [_PREFIX.match(name) if gene else None for name, gene in zip(ids, is_gene, strict=True)]
    if not all(match for match, gene in zip(found, is_gene, strict=True) if gene):
        return [""] * len(found)
    return [match.group(1) if match else "" for match in found]
