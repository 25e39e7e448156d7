"""From a source's tables of features to the features of the atlas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd

from cellmill.errors import ConfigError, GeneMappingError
from cellmill.genes import (
    ColumnMapping,
    GeneConfig,
    Organism,
    PeakConfig,
    ProteinConfig,
    Regions,
    assembly_of,
    detect_organism,
    likely_modality,
    lower_case_genes,
    map_columns,
    read_regions,
)
from cellmill.genes.assembly import Assembly, organism_of
from cellmill.genes.peaks import is_peak, named_assembly
from cellmill.ingestion.config import IngestConfig, JoinConfig, SourceConfig
from cellmill.ingestion.places import find_counts
from cellmill.ingestion.sources import Place, Source
from cellmill.ingestion.sources.base import INDEX
from cellmill.ingestion.sources.joined import JoinedSource
from cellmill.ingestion.sources.modalities import MODALITY

_BED = (
    ("chrom", "chr", "chromosome", "seqnames", "seqname"),
    ("start", "chromStart", "chromstart"),
    ("end", "chromEnd", "chromend", "stop"),
)

_MOSTLY = 0.5


@dataclass(frozen=True)
class Columns:
    """The columns of one matrix as its table of features names them; lists of one length."""

    names: list[str]
    symbols: list[str]
    modalities: list[str]
    assembly: Assembly | None


def find_matrix(source: Source, config: SourceConfig, megabytes: float) -> str:
    """Return the place of a source's counts, or the places of all its matrices; see `find_counts`."""
    if isinstance(source, JoinedSource):
        return source.find_counts(megabytes)
    return find_counts(source, config.counts, megabytes)


def plan_features(
    source: Source, place: str, config: SourceConfig, ingest: IngestConfig
) -> tuple[ColumnMapping, Organism]:
    """Decide which feature each column becomes, and whose cells they are.

    The organism is recognised by the names of genes alone; where there are none, it is that of the peaks' assembly.

    Raises
    ------
    GeneMappingError
        The organism cannot be recognised.
    ConfigError
        A column of var that is named is not there, peaks have no assembly, or settings contradict each other.
    """
    parts = source.parts(place) if isinstance(source, JoinedSource) else [(source, place, config)]
    columns = [_columns(*part) for part in parts]
    names = [name for one in columns for name in one.names]
    symbols = [symbol for one in columns for symbol in one.symbols]
    modalities = [kind for one in columns for kind in one.modalities]
    assemblies = {one.assembly for one in columns if one.assembly is not None}
    if len(assemblies) > 1:
        raise ConfigError(
            f"The peaks are of several assemblies: {', '.join(sorted(assemblies))}.",
            where=source.url,
            fix="Join matrices of one assembly.",
        )
    assembly = next(iter(assemblies), None)
    organism = config.organism if config.organism != "auto" else _organism(names, modalities, assembly, source, place)
    try:
        mapping = map_columns(
            names,
            modalities,
            organism=organism,
            symbols=symbols if any(symbols) else None,
            assembly=assembly,
            genes=ingest.genes,
            peaks=ingest.peaks,
            proteins=ingest.proteins,
            regions=load_regions(ingest.peaks) if assembly is not None else None,
        )
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{source.url}: {error.where}", fix=error.fix) from error
    return mapping, organism


def load_regions(peaks: PeakConfig) -> Regions | None:
    """Return the fixed set of regions that the configuration names, None if it names none."""
    if peaks.regions is None:
        return None
    place = Place(peaks.regions)
    return _read_regions(place.location, place.stamp, assembly_of(peaks.regions_assembly, "peaks.regions_assembly"))


@lru_cache(maxsize=1)
def _read_regions(location: str, stamp: str, assembly: Assembly) -> Regions:
    place = Place(location)
    if not place.exists:
        raise ConfigError("The file of regions does not exist.", where=place.url, fix="Check `peaks.regions`.")
    return read_regions(place.local_path().read_bytes(), assembly, place.url)


def identity(ingest: IngestConfig, mapping: ColumnMapping) -> dict[str, Any]:
    """Return what the configuration says about the modalities that a source has, as far as the result depends on it."""
    present = {part.mapping.modality for part in mapping.parts}
    genes = ingest.genes.model_dump(mode="json", exclude={"max_genes_lost", "max_umis_lost"}, exclude_defaults=True)
    found: dict[str, Any] = {"genes": genes}
    if "atac" in present:
        limits = {"max_peaks_lost", "max_counts_lost"}
        found["peaks"] = ingest.peaks.model_dump(mode="json", exclude={"regions", *limits}, exclude_defaults=True)
        regions = load_regions(ingest.peaks)
        found["regions"] = regions.sha256 if regions is not None else ""
    if "protein" in present:
        found["proteins"] = ingest.proteins.model_dump(mode="json", exclude_defaults=True)
    return found


def limits(ingest: IngestConfig, modality: str) -> GeneConfig | PeakConfig | ProteinConfig | None:
    """Return the settings that limit the loss in a modality, None for what is of none."""
    settings: dict[str, GeneConfig | PeakConfig | ProteinConfig] = {
        "rna": ingest.genes,
        "atac": ingest.peaks,
        "protein": ingest.proteins,
    }
    return settings.get(modality)


def _columns(source: Source, place: str, config: SourceConfig | JoinConfig) -> Columns:
    var = source.var(place)
    ids, second = source.default_names(place) if config.genes == "auto" else (config.genes, None)
    names = _column(var, ids, source.url, "genes")
    second = config.symbols or second
    symbols = _column(var, second, source.url, "symbols") if second else [""] * len(names)
    if MODALITY in var.columns and config.modality == "auto":
        modalities = var[MODALITY].astype(str).tolist()
    elif config.modality == "auto":
        guess = likely_modality(names)
        # Tables of genes have coordinates too.
        if guess == "rna" and _bed(var) is not None and detect_organism(names) is None:
            guess = "atac"
        modalities = [guess] * len(names)
    else:
        modalities = [config.modality] * len(names)
    assembly = None
    if "atac" in modalities:
        names = _regions_named(names, modalities, var)
        said = config.assembly or config.genome or _genome(var, modalities)
        own = said or named_assembly([name for name, kind in zip(names, modalities, strict=True) if kind == "atac"])
        assembly = assembly_of(own, f"{source.url}: assembly")
    return Columns(names, symbols, modalities, assembly)


def _genome(var: pd.DataFrame, modalities: Sequence[str]) -> str | None:
    """Return the one genome that the table of features names for its peaks, as 10x does."""
    if "genome" not in var.columns:
        return None
    named = {str(name) for name, kind in zip(var["genome"], modalities, strict=True) if kind == "atac"} - {""}
    return named.pop() if len(named) == 1 else None


def _regions_named(names: list[str], modalities: Sequence[str], var: pd.DataFrame) -> list[str]:
    """Return the names, those of peaks made from columns of var where they are no regions themselves."""
    peaks = [i for i, kind in enumerate(modalities) if kind == "atac"]
    bed = _bed(var)
    if bed is None or sum(is_peak(names[i]) for i in peaks[:1000]) * 2 > min(len(peaks), 1000):
        return names
    made = list(names)
    for i in peaks:
        made[i] = bed[i]
    return made


def _bed(var: pd.DataFrame) -> list[str] | None:
    """Return regions from columns with chromosome, start and end, None where there are no such columns."""
    found = [next((name for name in names if name in var.columns), None) for names in _BED]
    if None in found:
        return None
    place, start, end = (var[name].astype(str).str.removesuffix(".0") for name in found)
    return [f"{a}:{b}-{c}" for a, b, c in zip(place, start, end, strict=True)]


def _organism(
    names: Sequence[str], modalities: Sequence[str], assembly: Assembly | None, source: Source, place: str
) -> Organism:
    genes = [name for name, kind in zip(names, modalities, strict=True) if kind == "rna"]
    organism = detect_organism(genes) if genes else organism_of(assembly) if assembly is not None else None
    if organism is not None:
        return organism
    if not genes:
        raise GeneMappingError(
            "Names of proteins do not say whose they are.", where=source.url, fix="Set `organism` to human or mouse."
        )
    shares = lower_case_genes(genes)
    if max(shares.values()) >= _MOSTLY:
        known = " and ".join(f"{share:.0%} are {one} genes" for one, share in shares.items())
        raise GeneMappingError(
            f"The gene names ({', '.join(genes[:4])}, ...) are in lower case; but for that, {known}.",
            where=source.url,
            fix="Set `organism` to the one that was measured: human and mouse symbols differ by their case alone.",
        )
    columns = ", ".join(map(str, source.var(place).columns)) or "none"
    raise GeneMappingError(
        f"The gene names ({', '.join(genes[:4])}, ...) are of no organism that is known.",
        where=source.url,
        fix=f"Set `organism`, or `genes` to the column of var that holds Ensembl ids or symbols. There are: {columns}.",
    )


def _column(var: pd.DataFrame, name: str, url: str, key: str) -> list[str]:
    if name == INDEX:
        return [str(value) for value in var.index]
    if name not in var.columns:
        raise ConfigError(
            f"var has no column {name!r}.",
            where=url,
            fix=f"Set `{key}` to one of: index, {', '.join(map(str, var.columns))}.",
        )
    return [str(value) for value in var[name]]
