"""Finding the raw counts in a source, and saying where they were."""

from __future__ import annotations

from cellmill.counts import check_counts
from cellmill.errors import CountsError, ResourceError, SourceError
from cellmill.ingestion.memory import entries_at_once, refuse_blocks, refuse_long_cells
from cellmill.ingestion.packing import ranges
from cellmill.ingestion.sources import Source
from cellmill.ingestion.sources.base import NAMED_COUNTS, Blocks

_PROBE_CELLS = 256


def find_counts(source: Source, wanted: str, megabytes: float) -> str:
    """Return the place of the raw counts.

    A few hundred cells at the beginning and at the end decide; every further value is checked when it is read.

    Parameters
    ----------
    source
        The source.
    wanted
        A place, or ``auto``: the first that holds counts of a layer whose name says so, ``raw.X`` and ``X``. Other
        layers are taken only when asked for: integers are not always the counts (spliced reads alone, for one).
    megabytes
        Memory of a task: a matrix that cannot be looked at within it is refused, not passed over.

    Raises
    ------
    SourceError
        The source has no matrix, or none at the place.
    CountsError
        No place holds raw counts; the message gives the reason for each.
    ResourceError
        A matrix that may hold them is stored in chunks, or has a cell, that does not fit into a task.
    """
    every = list(source.places())
    if not every:
        raise SourceError("The file has no matrix.", where=source.url, fix="It needs raw counts in X or raw.X.")
    places = [wanted] if wanted != "auto" else [place for place in every if _says_counts(place)]
    empty: list[str] = []
    reasons: list[tuple[str, CountsError]] = []
    for place in places:
        _refuse_large(source, place, megabytes)
        # A matrix without any value is as good as none, where there is another.
        if not int(source.starts(place)[-1]):
            empty.append(place)
            continue
        reason = _refusal(source, place, megabytes)
        if reason is None:
            return place
        reasons.append((place, reason))
    if empty and not reasons:
        return empty[0]
    others = [place for place in every if place not in places and holds_counts(source, place, megabytes)]
    hint = f" Integers are in {', '.join(others)}: set `counts` to it if these are the counts." if others else ""
    if not reasons:
        raise CountsError("No place says that it holds raw counts.", where=source.url, fix=hint.strip())
    if len(reasons) == 1:
        error = reasons[0][1]
        raise CountsError(error.what, where=error.where, fix=error.fix + hint)
    what = "No matrix of the file holds raw counts. " + " ".join(f"{place}: {error.what}" for place, error in reasons)
    raise CountsError(what, where=source.url, fix=reasons[0][1].fix + hint)


def holds_counts(source: Source, place: str, megabytes: float) -> bool:
    """Return whether the matrix at a place has values, and those that are looked at are counts.

    One that cannot be looked at within the memory of a task is taken to hold none.

    Raises
    ------
    SourceError
        It cannot be read.
    """
    if not _fits(source, place, megabytes) or not int(source.starts(place)[-1]):
        return False
    return _refusal(source, place, megabytes) is None


def _says_counts(place: str) -> bool:
    return not place.startswith("layers/") or place.removeprefix("layers/").lower() in NAMED_COUNTS


def _refuse_large(source: Source, place: str, megabytes: float) -> None:
    if isinstance(source, Blocks):
        refuse_blocks(source.blocks(place), megabytes, f"{source.url}: {place}")
    refuse_long_cells(source.starts(place), megabytes, f"{source.url}: {place}")


def _fits(source: Source, place: str, megabytes: float) -> bool:
    try:
        _refuse_large(source, place, megabytes)
    except ResourceError:
        return False
    return True


def _refusal(source: Source, place: str, megabytes: float) -> CountsError | None:
    n, starts, most = source.n_cells, source.starts(place), entries_at_once(megabytes)
    try:
        for start, stop in sorted({(0, min(_PROBE_CELLS, n)), (max(0, n - _PROBE_CELLS), n)}):
            for a, b in ranges(starts[start + 1 : stop + 1] - starts[start], most):
                check_counts(source.rows(place, start + a, start + b).data, f"{source.url}: {place}")
    except CountsError as error:
        return error
    return None
