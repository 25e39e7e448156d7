"""Several matrices of the same cells as one source: proteins or peaks beside genes, aligned by barcode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from cellmill.digest import digest_of
from cellmill.errors import ConfigError, SourceError
from cellmill.ingestion.config import JoinConfig, SourceConfig
from cellmill.ingestion.memory import refuse_long_cells
from cellmill.ingestion.places import find_counts
from cellmill.ingestion.sources import registry
from cellmill.ingestion.sources.base import ObsBlocks, Source
from cellmill.ingestion.sources.holding import hold, text_bytes
from cellmill.ingestion.sources.place import Place

I64 = npt.NDArray[np.int64]
_AND = " + "
_LOOK = 32
_NEAR = 64
"""Rows this close together are read at once, with those between them."""


@dataclass(frozen=True)
class Further:
    """One more matrix of the same cells.

    Attributes
    ----------
    config
        What is said about it.
    source
        Where it is.
    own
        Whether it is in the file of the first matrix, whose rows it then has.
    """

    config: JoinConfig
    source: Source
    own: bool

    @property
    def label(self) -> str:
        """How it is called in reports."""
        return self.config.counts if self.own else self.source.url.rsplit("/", 1)[-1]


class JoinedSource:
    """Cells that a first source and further matrices have in common, in the order of the first.

    A place is that of every matrix, with `` + `` between; columns follow each other in the same order. Tables of cells
    are those of the first source.

    Attributes
    ----------
    left_out
        Cells of the first source that are not among these, by the first matrix that must have them and has not.
    unpaired
        Cells that are only in a further matrix, or are kept though it lacks them, by which.

    Parameters
    ----------
    first
        The source that the cells come from.
    config
        What is said about it.
    others
        The further matrices.

    Raises
    ------
    SourceError
        A barcode stands twice, or the matrices have no cell in common.
    """

    def __init__(self, first: Source, config: SourceConfig, others: Sequence[Further]) -> None:
        self.first, self.others, self._config = first, tuple(others), config
        self.name = first.name
        self.url = _AND.join(dict.fromkeys([first.url, *(other.source.url for other in others)]))
        self.stamp = " ".join([first.stamp, *(other.source.stamp for other in others if not other.own)]).strip()
        self.left_out: dict[str, int] = {}
        self.unpaired: dict[str, int] = {}
        self._rows = self._align()
        self._starts: dict[str, I64] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """Digests of all files."""
        found = [self.first.digest, *(other.source.digest for other in self.others if not other.own)]
        return tuple(dict.fromkeys(found))

    @cached_property
    def digest(self) -> str:
        """Digest of the file; of several files, the digest of their digests, a line each."""
        found = [self.first.digest, *(other.source.digest for other in self.others if not other.own)]
        return found[0] if len(found) == 1 else digest_of("".join(f"{one}\n" for one in found).encode())

    def close(self) -> None:
        """Close all files."""
        for source in (self.first, *(other.source for other in self.others if not other.own)):
            source.close()

    @property
    def n_cells(self) -> int:
        """Number of cells that are in all matrices that must have them."""
        return self._rows[0].size

    def find_counts(self, megabytes: float) -> str:
        """Return the places of the counts, looked for in each matrix by itself."""
        found = [find_counts(self.first, self._config.counts, megabytes)]
        found += [find_counts(other.source, other.config.counts, megabytes) for other in self.others]
        place = _AND.join(found)
        refuse_long_cells(self.starts(place), megabytes, self.url)
        return place

    def places(self) -> Sequence[str]:
        """Return nothing: each matrix has its own, see `find_counts`."""
        return ()

    def parts(self, place: str) -> list[tuple[Source, str, SourceConfig | JoinConfig]]:
        """Return source, place and configuration of every matrix."""
        places = place.split(_AND)
        if len(places) != 1 + len(self.others):
            raise SourceError(f"{place!r} does not name {1 + len(self.others)} matrices.", where=self.url)
        sources = [self.first, *(other.source for other in self.others)]
        configs: list[SourceConfig | JoinConfig] = [self._config, *(other.config for other in self.others)]
        return list(zip(sources, places, configs, strict=True))

    def starts(self, place: str) -> I64:
        """Return where the values of each cell begin among all that are stored: int64 [n_cells + 1]."""
        if place not in self._starts:
            hold(f"Where the {self.n_cells:,} cells begin", 24 * self.n_cells, self.url)
            lengths = np.zeros(self.n_cells, np.int64)
            for (source, own, _), rows in zip(self.parts(place), self._rows, strict=True):
                lengths += np.where(rows >= 0, np.diff(np.asarray(source.starts(own)))[rows], 0)
            self._starts[place] = np.concatenate([[0], np.cumsum(lengths)])
        return self._starts[place]

    def var(self, place: str) -> pd.DataFrame:
        """Return the features' tables, one below the other."""
        return pd.concat([source.var(own) for source, own, _ in self.parts(place)])

    def default_names(self, place: str) -> tuple[str, str | None]:
        """Return what the first matrix says; each has its own, see `parts`."""
        source, own, _ = self.parts(place)[0]
        return source.default_names(own)

    def obs_columns(self) -> list[str]:
        """Return the names of the columns of the first source's table of cells."""
        return self.first.obs_columns()

    def obs(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Return rows ``[start, stop)`` of columns of the cells' table, indexed by barcode."""
        rows = self._rows[0][start : self.n_cells if stop is None else stop]
        if not rows.size:
            return self.first.obs(columns, 0, 0)
        low = int(rows[0])
        table: pd.DataFrame = self.first.obs(columns, low, int(rows[-1]) + 1)
        return table if len(table) == rows.size else table.iloc[rows - low]

    def rows(self, place: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows ``[start, stop)`` of all matrices, side by side."""
        parts = self.parts(place)
        blocks = [
            _gather(source, own, rows[start:stop]) for (source, own, _), rows in zip(parts, self._rows, strict=True)
        ]
        return sparse.csr_matrix(sparse.hstack(blocks, format="csr"))

    def obs_blocks(self, columns: Sequence[str]) -> dict[str, int]:
        """See `ObsBlocks`."""
        return self.first.obs_blocks(columns) if isinstance(self.first, ObsBlocks) else {}

    def _align(self) -> list[I64]:
        """Return the rows of every matrix, the first's ascending; -1 where a matrix may lack the cell, and does."""
        everywhere = [other for other in self.others if not other.own]
        n = self.first.n_cells
        hold(f"The rows of {n:,} cells in each matrix", 8 * n * (1 + len(self.others)), self.url)
        if not everywhere:
            return [np.arange(n)] * (1 + len(self.others))
        barcodes = _barcodes(self.first)
        kept = np.ones(n, bool)
        found: list[I64] = []
        for other in self.others:
            if other.own:
                found.append(np.arange(n))
                continue
            theirs = _barcodes(other.source)
            rows = theirs.get_indexer(barcodes).astype(np.int64)
            if (rows < 0).all():
                raise SourceError(
                    f"No cell is in both: barcodes are like {barcodes[0]!r} here and {theirs[0]!r} there.",
                    where=f"{self.first.url} and {other.source.url}",
                    fix="Give the cells the same names in both files.",
                )
            _count(self.unpaired, f"only in {other.label}", len(theirs) - int((rows >= 0).sum()))
            if other.config.missing == "drop":
                _count(self.left_out, f"not in {other.label}", int((kept & (rows < 0)).sum()))
                kept &= rows >= 0
            found.append(rows)
        here = np.flatnonzero(kept)
        if not here.size:
            raise SourceError(
                f"No cell is in all of the {1 + len(self.others)} matrices.",
                where=self.url,
                fix="Set `missing: keep` for those that may lack cells.",
            )
        for other, rows in zip(self.others, found, strict=True):
            _count(self.unpaired, f"kept though not in {other.label}", int((rows[here] < 0).sum()))
        return [here, *(rows[here] for rows in found)]


def open_joined(format: str, place: Place, name: str, config: SourceConfig) -> Source:
    """Open a place in a format, joined with the further matrices that its configuration names.

    Raises
    ------
    SourceError
        A file cannot be read, or the cells do not fit together.
    ConfigError
        A further matrix of the same file has no place, or a file brings several matrices by itself.
    """
    first = registry.formats()[format].open(place, name, config)
    if not config.join:
        return first
    opened = [first]
    try:
        _refuse_several(first)
        others = []
        for join in config.join:
            if join.path is None:
                if join.counts == "auto":
                    raise ConfigError(
                        "A further matrix of the same file needs a place.",
                        where=f"{place.url}: join",
                        fix="Set `counts`, for instance to `obsm/protein_counts`; or `path`, if it is in another file.",
                    )
                others.append(Further(join, first, True))
                continue
            there = Place(join.path)
            own = SourceConfig.model_validate(join.model_dump(exclude={"missing"}))
            opened.append(registry.resolve(there, own).open(there, name, own))
            _refuse_several(opened[-1])
            others.append(Further(join, opened[-1], False))
        return JoinedSource(first, config, others)
    except Exception:
        for source in opened:
            source.close()
        raise


def _refuse_several(source: Source) -> None:
    if isinstance(source, JoinedSource):
        raise ConfigError(
            "The file has several modalities, and joins them by itself.",
            where=source.url,
            fix="Set `group` to the one that is to be joined.",
        )


def _count(counts: dict[str, int], what: str, n: int) -> None:
    if n:
        counts[what] = counts.get(what, 0) + n


def _barcodes(source: Source) -> pd.Index:
    n = source.n_cells
    names = text_bytes(n, source.obs([], 0, min(n, _LOOK)).index)
    # As the file has them and as text, where each is found, and where it is in the other matrix.
    hold(f"Matching {n:,} barcodes", 2 * names + 40 * n, source.url)
    index: pd.Index = source.obs([]).index.astype(str)
    if not index.is_unique:
        twice = index[index.duplicated()][0]
        raise SourceError(
            f"The barcode {twice!r} stands twice, so its cells cannot be told apart.",
            where=source.url,
            fix="Make the names of the cells unique (in the same way in all files).",
        )
    return index


def _gather(source: Source, place: str, rows: I64) -> sparse.csr_matrix:
    """Return rows of one matrix in any order, -1 for an empty one.

    Rows that lie close together are read with those between them, never more at once than are asked for.
    """
    if rows.size and rows[0] >= 0 and np.array_equal(rows, np.arange(rows[0], rows[0] + rows.size)):
        return source.rows(place, int(rows[0]), int(rows[-1]) + 1)
    wanted = np.unique(rows[rows >= 0])
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > _NEAR) + 1)
    blocks = []
    step = max(rows.size, _NEAR)
    for run in runs:
        if not run.size:
            continue
        for start in range(int(run[0]), int(run[-1]) + 1, step):
            stop = min(start + step, int(run[-1]) + 1)
            here = run[(run >= start) & (run < stop)]
            if here.size:
                block = source.rows(place, start, stop)
                blocks.append(block if here.size == stop - start else block[here - start])
    width = len(source.var(place))
    blocks.append(sparse.csr_matrix((1, width), dtype=blocks[0].dtype if blocks else np.uint8))
    stacked = sparse.csr_matrix(sparse.vstack(blocks, format="csr"))
    position = np.where(rows >= 0, np.searchsorted(wanted, rows), wanted.size)
    return sparse.csr_matrix(stacked[position])
