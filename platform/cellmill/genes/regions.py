"""A fixed set of genomic regions, and which of them a peak belongs to."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.errors import SourceError
from cellmill.genes.assembly import Assembly, chromosome

I64 = npt.NDArray[np.int64]
_SKIPPED = ("#", "track", "browser")


@dataclass(frozen=True)
class Regions:
    """Regions of one assembly, in the order of their file.

    Attributes
    ----------
    assembly
        Of the coordinates.
    chromosomes, names
        One each; a region without a name has "".
    starts, ends : int64 [n]
        Half-open, from 0.
    sha256
        Digest of the file.
    """

    assembly: Assembly
    chromosomes: tuple[str, ...]
    starts: I64
    ends: I64
    names: tuple[str, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.chromosomes)


def read_regions(data: bytes, assembly: Assembly, where: str) -> Regions:
    """Read a BED file, gzipped or not: chromosome, start, end and, perhaps, a name.

    Raises
    ------
    SourceError
        It is no BED file, holds no regions, or one region twice.
    """
    rows: dict[tuple[str, int, int], str] = {}
    try:
        lines = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SourceError(f"The regions cannot be read: {error}.", where=where, fix="Give a BED file.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith(_SKIPPED):
            continue
        parts = line.split("\t") if "\t" in line else line.split()
        place = chromosome(parts[0], assembly)
        if len(parts) < 3 or place is None or not (parts[1].isdigit() and parts[2].strip().isdigit()):
            raise SourceError(
                f"Line {number} is no region of {assembly}: {line[:80]!r}.",
                where=where,
                fix="Give a BED file: chromosome, start and end, with tabs between.",
            )
        key = (place, int(parts[1]), int(parts[2]))
        if key[1] >= key[2] or key in rows:
            what = "stands twice" if key in rows else "is empty"
            raise SourceError(f"The region in line {number} {what}.", where=where, fix="Take the line out.")
        rows[key] = parts[3].strip() if len(parts) > 3 and parts[3].strip() != "." else ""
    if not rows:
        raise SourceError("There are no regions.", where=where, fix="Give a BED file.")
    places, starts, ends = zip(*rows, strict=True)
    return Regions(
        assembly,
        places,
        np.array(starts, np.int64),
        np.array(ends, np.int64),
        tuple(rows.values()),
        hashlib.sha256(data).hexdigest(),
    )


def nearest_regions(
    chromosomes: Sequence[str], starts: I64, ends: I64, regions: Regions, min_overlap: float
) -> tuple[I64, I64]:
    """Return the region that each peak shares most bases with, and how many regions it overlaps enough.

    Parameters
    ----------
    chromosomes : n
        Of the peaks.
    starts, ends : int64 [n]
        Half-open; none is empty.
    regions
        May overlap each other.
    min_overlap
        Smallest overlap that is enough, as a share of the shorter of peak and region.

    Returns
    -------
    best : int64 [n]
        Position in `regions`, of several equals the first; -1 where no overlap is enough.
    n_enough : int64 [n]
        Regions whose overlap is enough.
    """
    best, n_enough = np.full(starts.size, -1, np.int64), np.zeros(starts.size, np.int64)
    names = np.array(chromosomes, dtype=object)
    own = np.array(regions.chromosomes, dtype=object)
    for name in set(chromosomes) & set(regions.chromosomes):
        peaks, here = np.flatnonzero(names == name), np.flatnonzero(own == name)
        here = here[np.argsort(regions.starts[here], kind="stable")]
        left, right = regions.starts[here], regions.ends[here]
        # Regions may contain each other, so that their ends are not sorted; the furthest end so far is.
        first = np.searchsorted(np.maximum.accumulate(right), starts[peaks], side="right")
        last = np.searchsorted(left, ends[peaks], side="left")
        n = np.maximum(last - first, 0)
        peak = np.repeat(np.arange(peaks.size), n)
        region = np.arange(peak.size) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first, n)
        a, b = starts[peaks][peak], ends[peaks][peak]
        shared = np.minimum(b, right[region]) - np.maximum(a, left[region])
        shorter = np.minimum(b - a, right[region] - left[region])
        enough = (shared > 0) & (shared >= min_overlap * shorter)
        peak, region, shared = peak[enough], here[region[enough]], shared[enough]
        order = np.lexsort((region, -shared, peak))
        peak, region = peak[order], region[order]
        found, at = np.unique(peak, return_index=True)
        best[peaks[found]] = region[at]
        n_enough[peaks] = np.bincount(peak, minlength=peaks.size)
    return best, n_enough
