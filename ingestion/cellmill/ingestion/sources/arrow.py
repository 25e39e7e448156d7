"""Parquet and Arrow files with a row for each cell: counts in lists beside a table of genes, or a column for each gene.

Lists, as Tahoe-100M and scBaseCount have them: one column of lists says which features a cell has (``genes``,
``indices``, ...), another their counts (``expressions``, ``counts``, ``values``, ...). Features are text, or numbers
that a table of genes explains: the file that `features` in the configuration names, or one called ``gene_metadata``,
``genes``, ``features`` or ``var`` (``.parquet``, ``.arrow``, ``.csv``, ``.tsv``) beside the data or in ``metadata``.

Columns: every numeric column is a gene, unless the configuration keeps it as a column of obs or CELLxGENE's schema
knows it. With a table of genes, those that it names are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import pandas as pd
import pyarrow as pa
from scipy import sparse

from cellmill.digest import digest_of
from cellmill.errors import SourceError
from cellmill.ingestion.config import SourceConfig
from cellmill.ingestion.sources.arrow_columns import pandas_array
from cellmill.ingestion.sources.arrow_features import find_table, read_table
from cellmill.ingestion.sources.arrow_layouts import FEATURES, VALUES, Columns, Lists, is_list
from cellmill.ingestion.sources.arrow_parts import Parts, is_arrow
from cellmill.ingestion.sources.base import Source
from cellmill.ingestion.sources.listing import children
from cellmill.ingestion.sources.names import names_in
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.starts import Starts

BARCODES = (
    "barcode", "barcodes", "cell_id", "cell_ids", "obs_id", "CellID", "cell", "index", "BARCODE_SUB_LIB_ID",
    "__index_level_0__",
)  # fmt: skip
_ENDINGS = (".parquet", ".pq", ".arrow", ".feather", ".ipc")


class ArrowSource:
    """Cells of Parquet or Arrow files.

    Parameters
    ----------
    place
        A file, or a folder whose files are read in the order of their names.
    name
        Name of the data set.
    config
        Says which columns are kept as obs, and where the table of genes is.

    Raises
    ------
    SourceError
        A file is damaged, or the columns are of neither layout.
    """

    def __init__(self, place: Place, name: str, config: SourceConfig) -> None:
        self.name, self.url = name, place.url
        self._places = files_of(place)
        found = find_table(place, config.features)
        self._table_place = found
        self._places = [one for one in self._places if found is None or one.location != found.location]
        if not self._places:
            raise SourceError("The folder has no Parquet or Arrow file.", where=place.url, fix="Check the path.")
        self.stamp = " ".join(one.stamp for one in (*self._places, *([found] if found else [])))
        self._parts = Parts(self._places)
        try:
            if not self.n_cells:
                raise SourceError("There are no cells.", where=self.url)
            schema = self._parts.schema
            self._barcode = next((column for column in BARCODES if column in schema.names), None)
            lists = [field.name for field in schema if is_list(field.type)]
            features = next((column for column in FEATURES if column in lists), None)
            values = next((column for column in VALUES if column in lists), None)
            table = read_table(found) if found is not None else None
            self._layout = (
                Lists(self._parts, features, values, table, self.url, self._identity)
                if features and values
                else Columns(
                    self._parts, {*(config.obs if isinstance(config.obs, dict) else ()), self._barcode}, table, self.url
                )
            )
        except BaseException:
            self.close()
            raise

    @cached_property
    def digest(self) -> str:
        """Digest of the file's bytes, or of the names and contents of all files and of the table of genes."""
        places = [*self._places, *([self._table_place] if self._table_place else [])]
        if len(places) == 1:
            return places[0].digest
        lines = "".join(f"{place.name}\0{place.digest}\n" for place in places)
        return digest_of(lines.encode())

    @property
    def _identity(self) -> str:
        return " ".join(f"{place.location} {place.stamp}" for place in self._places)

    def close(self) -> None:
        """Close all files."""
        self._parts.close()

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self._parts.n_rows

    def places(self) -> Sequence[str]:
        """Return the one place of the counts."""
        return ["X"]

    def starts(self, place: str) -> Starts:
        """Return where the values of each cell begin."""
        return self._at(place).starts

    def var(self, place: str) -> pd.DataFrame:
        """Return the table of genes, or the names of the columns."""
        return self._at(place).var

    def default_names(self, place: str) -> tuple[str, str | None]:
        """Return the columns of `var` with ids and symbols."""
        return names_in(self.var(place))

    def obs_columns(self) -> list[str]:
        """Return the columns that hold neither counts nor barcodes; lists cannot be columns of obs."""
        taken = {*self._layout.taken, self._barcode}
        return [
            field.name for field in self._parts.schema if field.name not in taken and not pa.types.is_nested(field.type)
        ]

    def obs(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Return rows ``[start, stop)`` of columns, indexed by barcode, or by number where there is none."""
        stop = self.n_cells if stop is None else stop
        names = list(dict.fromkeys([*columns, *([self._barcode] if self._barcode else [])]))
        table = self._parts.read(names, start, stop) if names else None
        numbers = [str(number) for number in range(start, stop)]
        index = numbers
        if self._barcode and table is not None:
            index = [str(value) for value in table[self._barcode].to_pylist()]
        frame = {name: pandas_array(table[name]) for name in columns} if table is not None else {}
        return pd.DataFrame(frame, index=pd.Index(index, dtype=object))

    def rows(self, place: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows ``[start, stop)``."""
        return self._at(place).rows(start, stop)

    def blocks(self, place: str) -> dict[str, int]:
        """See `Blocks`; lists are two columns, and what these take does not grow with the file."""
        layout = self._at(place)
        return layout.blocks if isinstance(layout, Columns) else {}

    def _at(self, place: str) -> Lists | Columns:
        if place != "X":
            raise SourceError(f"There is no matrix at {place!r}.", where=self.url, fix="There is: X.")
        return self._layout


class ArrowFormat:
    """The format ``parquet``, which reads Arrow files, too."""

    name = "parquet"

    def recognises(self, place: Place) -> bool:
        """Return whether a file, or the first file of a folder, is Parquet or Arrow."""
        found = files_of(place)
        return bool(found) and is_arrow(found[0])

    def open(self, place: Place, name: str, config: SourceConfig) -> Source:
        """Open a file or a folder."""
        return ArrowSource(place, name, config)


FORMAT = ArrowFormat()


def files_of(place: Place) -> list[Place]:
    """Return the file, or those of a folder that are called like Parquet or Arrow."""
    if not place.is_dir:
        return [place]
    names = [name for name in children(place) if name.endswith(_ENDINGS) and not name.startswith(("_", "."))]
    return [Place(f"{place.location}/{name}") for name in names]
