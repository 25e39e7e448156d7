"""Peaks: regions of a genome, one identity whatever their spelling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.genes.assembly import Assembly, chromosome, chromosome_lengths, organism_of, prefixed_assembly
from cellmill.genes.config import PeakConfig
from cellmill.genes.feature import Feature
from cellmill.genes.mapping import GeneMapping
from cellmill.genes.regions import Regions, nearest_regions
from cellmill.genes.status import CODE, Status

# 1-9963-10665, chr1:9963-10665, chr1_9963_10665, GL000194.1-55758-56597, chr1:9,963-10,665, chr1<tab>9963<tab>10665
_PEAK = re.compile(r"^\s*(\S+?)(?:[:_-]|\s+)(\d[\d,]*)(?:-|_|\.\.|\s+)(\d[\d,]*)\s*$")


@dataclass(frozen=True)
class Intervals:
    """Names read as regions.

    Attributes
    ----------
    chromosomes
        Of each name, "" where it is no region of the assembly.
    starts, ends : int64 [n]
        As written.
    status : uint8 [n]
        Codes: matched, unknown, of another species, or outside of its chromosome.
    """

    chromosomes: list[str]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    status: npt.NDArray[np.uint8]


def is_peak(name: str) -> bool:
    """Return whether a name is spelt like a region of some genome."""
    found = _PEAK.match(name)
    if found is None:
        return False
    text = prefixed_assembly(found[1])[1]
    return chromosome(text, "hg38") is not None


def named_assembly(names: Sequence[str]) -> str | None:
    """Return the assembly that stands before every name (``GRCh38_chr1:9963-10665``), None if there is no such."""
    found = {prefixed_assembly(match[1])[0] if (match := _PEAK.match(name)) else None for name in names}
    return found.pop() if len(found) == 1 else None


def read_intervals(names: Sequence[str], assembly: Assembly) -> Intervals:
    """Read names as regions of an assembly."""
    n = len(names)
    chromosomes = [""] * n
    starts, ends = np.zeros(n, np.int64), np.zeros(n, np.int64)
    status = np.full(n, CODE[Status.UNKNOWN], np.uint8)
    lengths = chromosome_lengths(assembly)
    for i, name in enumerate(names):
        found = _PEAK.match(name)
        if found is None:
            continue
        prefix, text = prefixed_assembly(found[1])
        if prefix is not None and prefix != assembly:
            other = organism_of(prefix) != organism_of(assembly)
            status[i] = CODE[Status.OTHER_SPECIES if other else Status.UNKNOWN]
            continue
        place = chromosome(text, assembly)
        start, end = int(found[2].replace(",", "")), int(found[3].replace(",", ""))
        if place is None or start >= end:
            continue
        # Windows of one size may reach beyond the end; a peak that begins there is of another assembly.
        if start >= lengths.get(place, start + 1):
            status[i] = CODE[Status.OUTSIDE]
            continue
        chromosomes[i], starts[i], ends[i] = place, start, end
        status[i] = CODE[Status.MATCHED]
    return Intervals(chromosomes, starts, ends, status)


def map_peaks(
    names: Sequence[str], *, assembly: Assembly, config: PeakConfig | None = None, regions: Regions | None = None
) -> GeneMapping:
    """Map peaks to features: each to its own region, or to one of a fixed set.

    A peak's identity is its assembly, chromosome, start and end: ``1-9963-10665``, ``chr1:9963-10665`` and
    ``chr1_9963_10665`` are ``hg38:chr1:9963-10665``, with the numbers as they are written.

    With `regions`, a peak goes to the region that it shares most bases with (the first of equals), if these are at
    least ``config.min_overlap`` of the shorter of the two. It goes there whole: counts are not divided. A peak for
    which several regions would do is reported as split, one for which none would is lost.

    Parameters
    ----------
    names
        One a column.
    assembly
        That the peaks are given in.
    config
        Overlap, and whether the counts are binarised.
    regions
        A fixed set in the same assembly.
    """
    settings = config or PeakConfig()
    found = read_intervals(names, assembly)
    codes = found.status.copy()
    target = np.full(len(names), -1, np.int32)
    release: str = assembly
    good = np.flatnonzero(codes == CODE[Status.MATCHED])
    features: list[Feature] = []
    place: dict[tuple[str, int, int] | int, int] = {}
    if regions is None:
        for i in good.tolist():
            key = (found.chromosomes[i], int(found.starts[i]), int(found.ends[i]))
            if key not in place:
                place[key] = len(features)
                features.append(_feature(assembly, *key))
            target[i] = place[key]
    else:
        best, n = nearest_regions(
            [found.chromosomes[i] for i in good], found.starts[good], found.ends[good], regions, settings.min_overlap
        )
        for i, region, hits in zip(good.tolist(), best.tolist(), n.tolist(), strict=True):
            if region < 0:
                codes[i] = CODE[Status.NO_REGION]
                continue
            if region not in place:
                place[region] = len(features)
                bounds = int(regions.starts[region]), int(regions.ends[region])
                features.append(_feature(assembly, regions.chromosomes[region], *bounds, regions.names[region]))
            target[i] = place[region]
            codes[i] = CODE[Status.SPLIT if hits > 1 else Status.MATCHED]
        release = f"{assembly}, {len(regions):,} regions"
    return GeneMapping(
        organism=organism_of(assembly),
        release=release,
        names=tuple(names),
        features=tuple(features),
        target=target,
        codes=codes,
        conflicts=np.zeros(len(names), bool),
        hint=_hint(codes, assembly),
        modality="atac",
        binarised=settings.binarise,
    )


def _feature(assembly: Assembly, place: str, start: int, end: int, name: str = "") -> Feature:
    text = f"{place}:{start}-{end}"
    return Feature(f"{assembly}:{text}", name or text, "atac", organism_of(assembly), assembly)


def _hint(codes: npt.NDArray[np.uint8], assembly: Assembly) -> str:
    outside = int((codes == CODE[Status.OUTSIDE]).sum())
    if outside:
        return f"{outside:,} peaks begin beyond the end of their chromosome in {assembly}: set another `assembly`."
    if codes.size and (codes == CODE[Status.UNKNOWN]).mean() > 0.5:
        return "Peaks are written chr1:9963-10665, or as columns chrom, start and end of `var`."
    return ""
