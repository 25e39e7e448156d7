"""Finding the raw counts in a source, and saying where they were."""

from __future__ import annotations

from cellmill.counts import check_counts
from cellmill.errors import CountsError, SourceError
from cellmill.ingestion.sources import Source

_PROBE_CELLS = 256


def find_counts(source: Source, wanted: str) -> str:
    """Return the place of the raw counts.

    The first few hundred cells decide; every further value is checked when it is read.

    Parameters
    ----------
    source
        The source.
    wanted
        A place, or ``auto``: the first of those there are that holds counts.

    Raises
    ------
    SourceError
        The source has no matrix, or none at the place.
    CountsError
        No place holds raw counts; the message gives the reason for each.
    """
    places = [wanted] if wanted != "auto" else list(source.places())
    if not places:
        raise SourceError("The file has no matrix.", where=source.url, fix="It needs raw counts in X or raw.X.")
    reasons = []
    for place in places:
        block = source.rows(place, 0, min(_PROBE_CELLS, source.n_cells))
        try:
            check_counts(block.data, f"{source.url}: {place}")
        except CountsError as error:
            reasons.append((place, error))
        else:
            return place
    if len(reasons) == 1:
        raise reasons[0][1]
    what = "No matrix of the file holds raw counts. " + " ".join(f"{place}: {error.what}" for place, error in reasons)
    raise CountsError(what, where=source.url, fix=reasons[0][1].fix)
