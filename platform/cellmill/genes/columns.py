"""All columns of a data set, of any modality, to features: one mapping a modality, joined into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.errors import ConfigError, GeneMappingError
from cellmill.genes.assembly import Assembly, organism_of
from cellmill.genes.config import GeneConfig, Organism, PeakConfig, ProteinConfig
from cellmill.genes.feature import Feature
from cellmill.genes.harmonisation import harmonise
from cellmill.genes.mapping import GeneMapping
from cellmill.genes.modality import MODALITIES
from cellmill.genes.peaks import map_peaks
from cellmill.genes.proteins import map_proteins
from cellmill.genes.regions import Regions
from cellmill.genes.report import GeneReport
from cellmill.genes.status import CODE, Status


@dataclass(frozen=True)
class Part:
    """The columns of one modality.

    Attributes
    ----------
    columns : int64 [n]
        Their positions in the data set, ascending.
    mapping
        What becomes of them.
    """

    columns: npt.NDArray[np.int64]
    mapping: GeneMapping


@dataclass(frozen=True)
class ColumnMapping:
    """Which feature each column of a data set becomes.

    Attributes
    ----------
    names
        Of all columns, n_in of them.
    features
        Genes first, then peaks, then proteins; ids are unique over all.
    target : int32 [n_in]
        Position in `features`, -1 for none.
    binary : bool [n_features]
        Features whose counts are stored as 1.
    parts
        One for each modality that there is, genes first; columns of no known modality come last.
    """

    names: tuple[str, ...]
    features: tuple[Feature, ...]
    target: npt.NDArray[np.int32]
    binary: npt.NDArray[np.bool_]
    parts: tuple[Part, ...]

    @property
    def organism(self) -> str:
        """Organism of the features."""
        return self.features[0].organism if self.features else self.parts[0].mapping.organism

    def reports(self, umis: npt.ArrayLike) -> tuple[GeneReport, ...]:
        """Return what became of the columns of each part.

        Parameters
        ----------
        umis : float64 [n_in]
            Sum of each column.
        """
        sums = np.asarray(umis, np.float64)
        return tuple(part.mapping.report(sums[part.columns]) for part in self.parts)


def map_columns(
    names: Sequence[str],
    modalities: Sequence[str],
    *,
    organism: Organism | None,
    symbols: Sequence[str] | None = None,
    assembly: Assembly | None = None,
    genes: GeneConfig | None = None,
    peaks: PeakConfig | None = None,
    proteins: ProteinConfig | None = None,
    regions: Regions | None = None,
) -> ColumnMapping:
    """Map the columns of a data set, each by the rules of its modality.

    Parameters
    ----------
    names, modalities
        One a column; a modality that is none of ``rna``, ``atac`` and ``protein`` has no place.
    organism
        That was measured; by default that of the assembly.
    symbols
        Second names of genes, see `harmonise`.
    assembly
        Of the peaks; needed if there are any.
    genes, peaks, proteins
        Settings of each modality.
    regions
        A fixed set that the peaks are mapped to.

    Raises
    ------
    ConfigError
        The organism is not known; or the assembly is another organism's; or orthologs are asked for beside features
        that have none; or the regions are of another assembly.
    GeneMappingError
        The arguments differ in length.
    """
    if len(modalities) != len(names) or len(symbols or names) != len(names):
        raise GeneMappingError("Names, modalities and symbols differ in number.")
    kinds = np.array(modalities, dtype=object)
    present = [kind for kind in MODALITIES if (kinds == kind).any()]
    others = [kind for kind in dict.fromkeys(modalities) if kind not in MODALITIES]
    settings = genes or GeneConfig()
    organism = organism or (organism_of(assembly) if assembly is not None else None)
    if organism is None:
        raise ConfigError("The organism is not known.", where="organism", fix="Set `organism`.")
    _check(present, organism, assembly, settings, regions)
    parts = []
    for kind in (*present, *others):
        columns = np.flatnonzero(kinds == kind)
        own = [names[i] for i in columns.tolist()]
        if kind == "rna":
            second = None if symbols is None else [symbols[i] for i in columns.tolist()]
            mapping = harmonise(own, organism=organism, symbols=second, config=settings, lower_case=True)
        elif kind == "atac":
            assert assembly is not None
            mapping = map_peaks(own, assembly=assembly, config=peaks, regions=regions)
        elif kind == "protein":
            mapping = map_proteins(own, organism=organism, config=proteins)
        else:
            mapping = _nothing(own, kind, organism)
        parts.append(Part(columns, mapping))
    return _joined(names, parts)


def _check(
    present: Sequence[str],
    organism: Organism,
    assembly: Assembly | None,
    genes: GeneConfig,
    regions: Regions | None,
) -> None:
    if genes.ortholog_to not in (None, organism) and set(present) - {"rna"}:
        raise ConfigError(
            "Peaks and proteins have no orthologs.",
            where="genes.ortholog_to",
            fix="Ingest this data set with another configuration, without `ortholog_to`.",
        )
    if "atac" not in present:
        return
    if assembly is None:
        raise ConfigError("Peaks mean nothing without their assembly.", where="assembly", fix="Set `assembly`.")
    if organism_of(assembly) != organism:
        raise ConfigError(f"{assembly} is no assembly of {organism}.", where="assembly", fix="Set the right one.")
    if regions is not None and regions.assembly != assembly:
        raise ConfigError(
            f"The peaks are of {assembly}, the regions of {regions.assembly}.",
            where="peaks.regions",
            fix="Lift one of them over, for instance with UCSC liftOver: Cellmill does not guess.",
        )


def _nothing(names: list[str], kind: str, organism: Organism) -> GeneMapping:
    n = len(names)
    return GeneMapping(
        organism=organism,
        release="",
        names=tuple(names),
        features=(),
        target=np.full(n, -1, np.int32),
        codes=np.full(n, CODE[Status.OTHER_MODALITY], np.uint8),
        conflicts=np.zeros(n, bool),
        modality=kind,
    )


def _joined(names: Sequence[str], parts: Sequence[Part]) -> ColumnMapping:
    target = np.full(len(names), -1, np.int32)
    features: list[Feature] = []
    binary: list[bool] = []
    for part in parts:
        own = part.mapping.target
        target[part.columns] = np.where(own >= 0, own + len(features), -1)
        features += part.mapping.features
        binary += [part.mapping.binarised] * len(part.mapping.features)
    return ColumnMapping(tuple(names), tuple(features), target, np.array(binary, bool), tuple(parts))
