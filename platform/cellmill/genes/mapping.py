"""The map from a data set's columns to features, and its application to a matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellmill.errors import GeneMappingError
from cellmill.genes.feature import Feature
from cellmill.genes.report import GeneReport
from cellmill.genes.status import CODE, CONTROLS, KEPT, LOST, STATUSES, Status
from cellmill.genes.tables import load_table

_N_EXAMPLES = 20


@dataclass(frozen=True)
class GeneMapping:
    """Which feature each input column of one modality becomes.

    Parameters
    ----------
    organism, release
        Of the input's gene table; for peaks, the release is their assembly.
    names
        The input's names, n_in of them.
    features
        The targets, with unique ids, in order of first appearance.
    target : int32[n_in]
        Index into `features`; -1 where a column has no place.
    codes : uint8[n_in]
        Index into ``STATUSES``.
    conflicts : bool[n_in]
        Columns whose symbol is the approved symbol of another gene than their id.
    hint
        What the names look like, where most are unknown.
    modality
        Of the features; of columns that are neither genes nor peaks nor proteins, what their source calls them.
    binarised
        Whether counts above 1 are stored as 1.
    """

    organism: str
    release: str
    names: tuple[str, ...]
    features: tuple[Feature, ...]
    target: npt.NDArray[np.int32]
    codes: npt.NDArray[np.uint8]
    conflicts: npt.NDArray[np.bool_]
    hint: str = field(default="", compare=False)
    modality: str = "rna"
    binarised: bool = False

    @property
    def status(self) -> list[Status]:
        """What became of each input column."""
        return [STATUSES[code] for code in self.codes]

    def apply(self, matrix: Any) -> sparse.csr_matrix:
        """Return counts over `features`, columns of one feature summed, entries in column order.

        Parameters
        ----------
        matrix : scipy CSR [cells x n_in]
            Counts; integers stay exact and are widened to int64 where a sum needs it.

        Raises
        ------
        GeneMappingError
            The number of columns is not that of the names.
        """
        counts = sparse.csr_matrix(matrix)
        if counts.shape[1] != len(self.names):
            raise GeneMappingError(
                f"The matrix has {counts.shape[1]:,} columns, but {len(self.names):,} names were harmonised."
            )
        column = self.target[counts.indices]
        keep = column >= 0
        below = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])
        shape = (counts.shape[0], len(self.features))
        data = counts.data[keep]
        merged = np.count_nonzero(self.target >= 0) > len(self.features)
        if merged:
            data = data.astype(np.int64 if data.dtype.kind in "iub" else np.float64)
        result = sparse.csr_matrix((data, column[keep], below[counts.indptr]), shape=shape)
        result.sum_duplicates()
        if merged:
            result.data = _narrowed(result.data, counts.dtype)
        return result

    def report(self, umis: npt.ArrayLike) -> GeneReport:
        """Return what became of genes and UMIs.

        Parameters
        ----------
        umis : float64[n_in]
            Sum of each input column.
        """
        weight = np.asarray(umis, dtype=np.float64)
        if weight.shape != self.codes.shape:
            raise GeneMappingError(f"{weight.size:,} column sums were given for {len(self.names):,} names.")
        n = np.bincount(self.codes, minlength=len(STATUSES))
        total = np.bincount(self.codes, weights=weight, minlength=len(STATUSES))
        order = np.lexsort((np.arange(weight.size), -weight))
        examples = {}
        for status in STATUSES:
            if status is not Status.MATCHED and n[CODE[status]]:
                chosen = order[self.codes[order] == CODE[status]][:_N_EXAMPLES]
                examples[status.value] = tuple(self._example(int(i), status) for i in chosen)
        if self.conflicts.any():
            chosen = order[self.conflicts[order]][:_N_EXAMPLES]
            examples["conflicts"] = tuple(self._example(int(i), Status.MATCHED) for i in chosen)
        present = [status for status in STATUSES if n[CODE[status]]]
        kept = int(sum(n[CODE[status]] for status in KEPT))
        placed = np.flatnonzero(self.target >= 0)
        firsts = placed[np.unique(self.target[placed], return_index=True)[1]]
        return GeneReport(
            modality=self.modality,
            organism=self.features[0].organism if self.features else self.organism,
            release=self.features[0].release if self.features else self.release,
            genes_in=len(self.names),
            genes_out=len(self.features),
            genes={status: int(n[CODE[status]]) for status in present},
            umis={status: float(total[CODE[status]]) for status in present},
            summed=kept - len(self.features),
            umis_summed=float(weight[placed].sum() - weight[firsts].sum()),
            conflicts=int(self.conflicts.sum()),
            genes_lost=_share_lost(n),
            umis_lost=_share_lost(total),
            examples=examples,
            binarised=self.binarised,
            hint=self.hint,
        )

    def _example(self, column: int, status: Status) -> str:
        name = self.names[column]
        target = int(self.target[column])
        if target >= 0:
            return f"{name} → {self.features[target].symbol}"
        if status is Status.AMBIGUOUS and (meanings := load_table_of(self.organism).candidates(name)):
            return f"{name} ({meanings.replace(',', ' or ')})"
        return name


def load_table_of(organism: str) -> Any:
    """Return the table of an organism that harmonisation has accepted."""
    return load_table("mouse" if organism == "mouse" else "human")


def _share_lost(amount: npt.NDArray[Any]) -> float:
    lost = float(sum(amount[CODE[status]] for status in LOST))
    whole = float(amount.sum()) - float(sum(amount[CODE[status]] for status in CONTROLS))
    return lost / whole if whole > 0 else 0.0


def _narrowed(data: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return sums in the input's dtype where that is exact, else as they are."""
    narrow = data.astype(dtype)
    return narrow if np.array_equal(narrow.astype(data.dtype), data) else data
