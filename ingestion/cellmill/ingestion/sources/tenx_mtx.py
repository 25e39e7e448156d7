"""10x MatrixMarket folders: matrix.mtx, genes.tsv or features.tsv, barcodes.tsv, gzipped or not, prefixed or not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from cellmill.digest import digest_of
from cellmill.errors import SourceError
from cellmill.ingestion.config import SourceConfig
from cellmill.ingestion.sources.inflate import inflated, lines
from cellmill.ingestion.sources.listing import children
from cellmill.ingestion.sources.matrix_market import MatrixMarket
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.prepared import prepared
from cellmill.ingestion.sources.stored_rows import StoredRows
from cellmill.ingestion.sources.tenx_cells import TenxCells
from cellmill.ingestion.sources.tenx_features import columns_of_genome, digest_of_part, feature_table

_BLOCK = 1 << 22
_MATRIX = re.compile(r"^(?P<prefix>.*?)(?P<stem>[^.]*)\.mtx(\.gz)?$")
_LARGEST_TABLE = 1 << 30
_HEAD = 1 << 12


@dataclass(frozen=True)
class Parts:
    """The three files of a matrix."""

    matrix: Place
    features: Place
    barcodes: Place

    @property
    def all(self) -> tuple[Place, Place, Place]:
        """All of them."""
        return self.matrix, self.features, self.barcodes


class TenxMtxSource(TenxCells):
    """Cells of a MatrixMarket file, with the features and barcodes that lie beside it.

    The text is read once a machine, into compressed rows in the cache; its size and order do not matter.

    Parameters
    ----------
    place
        The folder, or the matrix in it.
    name
        Name of the data set.
    genome
        Which genome's features, where there are several.

    Raises
    ------
    SourceError
        A file is missing or damaged, or the three do not belong together.
    """

    _matrix: StoredRows

    def __init__(self, place: Place, name: str, genome: str | None) -> None:
        self.name, self.url, self._genome = name, place.url, genome
        self._parts = find_parts(place)
        self.stamp = " ".join(part.stamp for part in self._parts.all)
        self._barcodes = pd.Index([line.split("\t")[0] for line in _table(self._parts.barcodes)], dtype=object)
        self._all = _features(self._parts.features)
        if not len(self._barcodes):
            raise SourceError("There are no cells.", where=self.url)
        self._columns = columns_of_genome(self._all, genome, self.url)
        identity = f"compressed rows 1 {self._parts.matrix.location} {self.stamp}"
        self._matrix = StoredRows(prepared(identity, self._prepare))

    def _prepare(self, folder: Path) -> None:
        where = self._parts.matrix.url
        matrix = MatrixMarket(inflated(_blocks(self._parts.matrix), where), where)
        shape = matrix.header.n_rows, matrix.header.n_columns
        n_features, n_cells = len(self._all), len(self._barcodes)
        if shape not in ((n_features, n_cells), (n_cells, n_features)):
            raise SourceError(
                f"The matrix has {shape[0]:,} rows and {shape[1]:,} columns, but there are {n_features:,} features and "
                f"{n_cells:,} barcodes.",
                where=f"{where}, {self._parts.features.name}, {self._parts.barcodes.name}",
                fix="Give the files of one run, without headings in the tables.",
            )
        matrix.write_rows(folder, cells_are_columns=shape == (n_features, n_cells))

    @cached_property
    def digest(self) -> str:
        """Digest of the names and contents of the three files, and of the genome where one is asked for."""
        parts = sorted(f"{part.name}\0{part.digest}\n" for part in self._parts.all)
        return digest_of_part(digest_of("".join(parts).encode()), self._genome)

    def close(self) -> None:
        """Close the files."""
        self._matrix.close()


class TenxMtxFormat:
    """The format ``10x_mtx``: a folder with one matrix, or the matrix's file among others in one folder."""

    name = "10x_mtx"

    def recognises(self, place: Place) -> bool:
        """Return whether a file, or a file of the folder, begins like MatrixMarket."""
        found = matrices(place) if place.is_dir else [place]
        return bool(found) and _is_matrix(found[0])

    def open(self, place: Place, name: str, config: SourceConfig) -> TenxMtxSource:
        """Open a folder or a matrix."""
        return TenxMtxSource(place, name, config.genome)


FORMAT = TenxMtxFormat()


def matrices(folder: Place) -> list[Place]:
    """Return the files of a folder that are called like a matrix."""
    return [Place(f"{folder.location}/{name}") for name in children(folder) if _MATRIX.match(name)]


def find_parts(place: Place) -> Parts:
    """Return a matrix and the tables that belong to it.

    Raises
    ------
    SourceError
        The folder has no matrix or several, or a table is missing.
    """
    matrix = place
    if place.is_dir:
        found = matrices(place)
        if len(found) != 1:
            names = ", ".join(one.name for one in found[:4])
            raise SourceError(
                f"The folder has {len(found)} matrices: {names}." if found else "The folder has no matrix.mtx.",
                where=place.url,
                fix=f"Give one of them, as {place.url}/{found[0].name}; or all, as one data set, by a pattern."
                if found
                else "Check the path.",
            )
        matrix = found[0]
    match = _MATRIX.match(matrix.name)
    if match is None and not matrix.exists:
        raise matrix.absent()
    if match is None:
        raise SourceError("A MatrixMarket file must be called *.mtx or *.mtx.gz.", where=place.url, fix="Rename it.")
    stem = matrix.name.removesuffix(".gz").removesuffix(".mtx")
    prefix = stem.removesuffix("matrix")
    features = [f"{prefix}features.tsv", f"{prefix}genes.tsv", f"{stem}.genes.txt"]
    barcodes = [f"{prefix}barcodes.tsv", f"{stem}.barcodes.txt"]
    return Parts(matrix, _beside(matrix, features), _beside(matrix, barcodes))


def _beside(matrix: Place, names: Sequence[str]) -> Place:
    folder = matrix.location.rpartition("/")[0]
    for name in names:
        for full in (f"{name}.gz", name):
            place = Place(f"{folder}/{full}")
            if place.exists:
                return place
    raise SourceError(
        f"There is no {names[0]} beside the matrix.",
        where=matrix.url,
        fix=f"Put it there, as one of: {', '.join(names)} (or .gz).",
    )


def _is_matrix(place: Place) -> bool:
    if place.is_dir:
        return False
    head = place.head(_HEAD)
    if head.startswith(b"\x1f\x8b"):
        if not _MATRIX.match(place.name):
            return False
        try:
            head = next(inflated([head], place.url), b"")
        except SourceError:
            return True
    return head[:14].lower() == b"%%matrixmarket"


def _features(place: Place) -> pd.DataFrame:
    rows = [line.split("\t") for line in _table(place)]
    width = min((len(row) for row in rows), default=1)
    columns = list(zip(*(row[:3] for row in rows), strict=False)) if width else []
    if not columns or width != max(map(len, rows)):
        raise SourceError(
            "The lines of the features' table have different numbers of columns.",
            where=place.url,
            fix="Fetch it again.",
        )
    return feature_table(columns[0], columns[1] if width > 1 else None, columns[2] if width > 2 else None, None)


def _table(place: Place) -> list[str]:
    return lines(inflated(_blocks(place), place.url), place.url, _LARGEST_TABLE)


def _blocks(place: Place) -> Iterator[bytes]:
    with place.local_path().open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
